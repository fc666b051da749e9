"""What differs between the Pythons that we promise to run on."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_nothing_is_raised_inside_except_star() -> None:
    """Debian 12 has Python 3.11.2, where such an exception comes out wrapped in a group and nobody catches it."""
    found = [
        f"{path.relative_to(ROOT)}:{inner.lineno}"
        for folder in ("services", "causeway", "lab", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
        for inner in ast.walk(handler)
        if isinstance(inner, ast.Raise) and inner.exc is not None
    ]
    assert found == []
