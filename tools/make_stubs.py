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


def _is_overload(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(each) == "typing.overload" for each in node.decorator_list)


class _Strip(ast.NodeTransformer):
    """Takes docstrings and bodies away. Those of `__init__` stay: they tell the types of
    attributes. Of an overloaded function the implementation goes, too."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name != "__init__":
            node.body = []
        self._strip_docstring(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._strip_docstring(node)
        functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
        overloaded = {each.name for each in functions if _is_overload(each)}
        gone = [each for each in functions if each.name in overloaded and not _is_overload(each)]
        node.body = [each for each in node.body if each not in gone]
        self.generic_visit(node)
        return node

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self._strip_docstring(node)
        self.generic_visit(node)
        return node

    def _strip_docstring(self, node: ast.FunctionDef | ast.ClassDef | ast.Module) -> None:
        if ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        node.body = node.body or [ast.Expr(ast.Constant(...))]


def make_stubs(source: str) -> ast.Module:
    tree = ast.parse(source)
    _Strip().visit(tree)
    return ast.fix_missing_locations(tree)


if __name__ == "__main__":
    STUBS.write_text(
        f"# Made by tools/make_stubs.py.\n{ast.unparse(make_stubs((HERE / 'kuyruk.py').read_text()))}\n"
    )
