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


class _Strip(ast.NodeTransformer):
    """Takes docstrings and bodies away. Those of `__init__` stay: they tell the types of
    attributes."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if node.name != "__init__":
            node.body = []
        self._strip_docstring(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._strip_docstring(node)
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
