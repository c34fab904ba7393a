"""Write kuyruk-stubs/__init__.pyi: kuyruk.py without what its functions do.

    python tools/make_stubs.py

A single module can't carry `py.typed`, so the types of an installed copy are in a package of stubs.
It is a file of its own and no link, because not every checkout has links. A test compares it with
kuyruk.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
STUBS = HERE / "kuyruk-stubs" / "__init__.pyi"


def _is_overload(node: ast.stmt) -> bool:
    names = map(ast.unparse, node.decorator_list) if isinstance(node, ast.FunctionDef) else ()
    return "typing.overload" in names


class _Strip(ast.NodeTransformer):
    """Take docstrings and bodies away. Those of `__init__` stay: they tell the types of attributes.
    Of an overloaded function the implementation goes, too."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            node.body = []
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if node.body and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            overloaded = {getattr(each, "name", "") for each in node.body if _is_overload(each)}
            node.body = [
                each
                for each in node.body
                if _is_overload(each) or getattr(each, "name", None) not in overloaded
            ]
            node.body = node.body or [ast.Expr(ast.Constant(...))]
        return super().generic_visit(node)


def make_stubs(source: str) -> ast.Module:
    tree = ast.parse(source)
    _Strip().visit(tree)
    return ast.fix_missing_locations(tree)


if __name__ == "__main__":
    text = ast.unparse(make_stubs((HERE / "kuyruk.py").read_text()))
    STUBS.write_text(f"# Made by tools/make_stubs.py.\n{text}\n")
