"""Files and functions that a reader takes in at a glance."""

import ast
from pathlib import Path

import pytest

import ghnqat_sdk

ROOT = Path(ghnqat_sdk.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
REPOSITORY = Path(__file__).parents[1]
OTHERS = {
    str(path.relative_to(REPOSITORY)): path
    for folder in ("tests", "benchmarks", "examples")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 50
# These lists only shrink.
TOO_LONG: set[str] = set()
LONG_FUNCTIONS: set[str] = set()


def long_functions(name: str) -> list[str]:
    """Functions of more lines than they may have, docstrings left out."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [f"{name}: {node.name}" for node in functions if lines(node) > MOST_LINES_OF_A_FUNCTION]


def lines(function: ast.FunctionDef) -> int:
    """Of its signature and its body."""
    whole = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return whole
    return whole - (first.end_lineno - first.lineno + 1)


@pytest.mark.parametrize("name", [name for name in FILES if name not in TOO_LONG])
def test_a_file_is_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_tests_benchmarks_and_examples_are_short():
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in OTHERS.items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("name", FILES)
def test_defaults_of_fields_are_named(name):
    """As type checkers without a plugin understand them."""
    calls = [n for n in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(n, ast.Call)]
    fields = [call for call in calls if getattr(call.func, "id", "") == "Field"]
    assert [ast.unparse(call) for call in fields if call.args] == []


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name):
    assert [function for function in long_functions(name) if function not in LONG_FUNCTIONS] == []
