"""The house of the package: a module imports only from floors below it, and in no circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ghnqat_sdk

ROOT = Path(ghnqat_sdk.__file__).parent
FLOORS = (
    (
        *("advice", "bits", "calls", "checks", "choices", "copying", "devices", "errors"),
        *("configs", "files", "filling", "functions", "generators", "plotting", "plugins"),
        *("progress", "signatures", "version"),
    ),
    ("graph", "quantization"),
    ("hypernetwork",),
    ("data", "demo", "deriving", "export", "heads", "predict", "prediction", "qat", "search"),
    ("training",),
    ("cli",),
)
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room(module: str) -> str:
    """What the floors are made of: a module or a folder of the package."""
    return module.split(".")[1]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_contributing_page_shows_every_room():
    page = (Path(__file__).parents[1] / "docs" / "contributing.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"## Where things are.*?```text\n(.*?)```", page, re.DOTALL)
    shown = {word.rstrip("/") for word in re.findall(r"[a-z]+/?", drawing)}
    assert {name for rooms in FLOORS for name in rooms} <= shown


ROOMS = [module for module, path in MODULES.items() if path.name == "__init__.py"][1:]


@pytest.mark.parametrize("room", ROOMS)
def test_the_docstring_of_a_room_names_its_files(room):
    text = ast.get_docstring(ast.parse(MODULES[room].read_text(encoding="utf-8")))
    files = {path.name for path in MODULES[room].parent.glob("*.py")} - {"__init__.py"}
    assert files <= set(re.findall(r"\w+\.py", text))


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """(module of the package, line) of all imports: in functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name in MODULES)


GRAPH = {module: list(imports(module, path)) for module, path in MODULES.items()}
INSIDE = [module for module in MODULES if module != "ghnqat_sdk"]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, an empty list where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", INSIDE)
def test_a_module_imports_from_its_floor_and_those_below(module):
    upward = [
        f"line {line}: {name}"
        for name, line in GRAPH[module]
        if name != "ghnqat_sdk" and floor(name) > floor(module)
    ]
    assert upward == []


@pytest.mark.parametrize("module", INSIDE)
def test_no_module_imports_the_package_as_a_whole(module):
    """Its names are lazy, and come from every floor."""
    assert [line for name, line in GRAPH[module] if name == "ghnqat_sdk"] == []


def test_modules_import_each_other_in_no_circle():
    assert circle({m: {name for name, _ in GRAPH[m]} for m in INSIDE}) == []


def test_rooms_read_each_other_one_way():
    edges: dict[str, set[str]] = {}
    for module in INSIDE:
        others = {room(name) for name, _ in GRAPH[module] if name != "ghnqat_sdk"}
        edges.setdefault(room(module), set()).update(others - {room(module)})
    assert circle(edges) == []


def test_every_module_has_a_floor():
    assert {room(module) for module in INSIDE} <= {name for rooms in FLOORS for name in rooms}
