"""The package as it is installed: version, import, typing, public names, dependencies."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import ghnqat_sdk

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ghnqat_sdk.__file__).parent
LATE = ("torchvision", "huggingface_hub", "networkx", "matplotlib", "PIL", "tensorboard", "onnx")
SUBMODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
DISTRIBUTIONS = {"PIL": "pillow", "pytorch_optimizer": "pytorch-optimizer"}
"""Of modules that are not named like them."""


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Lower bound by distribution; what refers to the package itself is left out."""
    pairs = (requirement.split(">=") for requirement in requirements)
    return {pair[0].partition("[")[0]: pair[1] for pair in pairs if len(pair) == 2}


def imported(folder: Path) -> set[str]:
    """Distributions that the modules below `folder` import, wherever in them."""
    trees = (ast.parse(path.read_bytes()) for path in folder.rglob("*.py"))
    names = {name for tree in trees for name in _imports(tree)} - {"ghnqat_sdk"}
    return {DISTRIBUTIONS.get(name, name) for name in names - sys.stdlib_module_names}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


# Version and import


def test_version_is_that_of_the_metadata() -> None:
    try:
        installed = importlib.metadata.version("ghnqat-sdk")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed: pip install .")
    assert installed == ghnqat_sdk.__version__


def test_version_has_its_entry_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert versions[0][0] == ghnqat_sdk.__version__


def test_citation_is_of_this_version_and_of_the_papers() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ghnqat_sdk.__version__}\n" in text
    assert re.findall(r"^    year: (\d+)$", text, re.MULTILINE) == ["2023", "2021", "2023"]


def test_import_is_silent_and_leaves_heavy_packages_for_later() -> None:
    assert run("-c", "import ghnqat_sdk") == ""
    code = f"import sys, ghnqat_sdk; print([n for n in {LATE} if n in sys.modules])"
    assert run("-c", code) == "[]\n"


def test_command_lines_start_without_heavy_packages() -> None:
    imports = "import sys, ghnqat_sdk.cli, ghnqat_sdk.cli.train"
    code = f"{imports}; print([n for n in {LATE} if n in sys.modules])"
    assert run("-c", code) == "[]\n"


def test_import_leaves_torch_as_it_was() -> None:
    code = """if True:
        import random, torch
        def globals_of_torch():
            return random.getstate(), torch.get_num_threads(), torch.get_default_dtype()
        drawn, before = torch.get_rng_state(), globals_of_torch()
        import ghnqat_sdk
        print(torch.equal(drawn, torch.get_rng_state()), before == globals_of_torch())
    """
    assert run("-c", code) == "True True\n"


def test_every_module_imports_without_a_warning() -> None:
    code = f"import importlib\nfor name in {SUBMODULES}: importlib.import_module(name)"
    assert run("-c", code) == ""


# What is shipped, and its types


def test_type_annotations_and_weights_are_shipped() -> None:
    package = resources.files("ghnqat_sdk")
    weights = [
        f"hypernetwork/weights/{name}"
        for name in ("config.json", "model.safetensors", "model.safetensors.sha256")
    ]
    assert [name for name in ("py.typed", *weights) if not package.joinpath(name).is_file()] == []


def test_typed_program_runs_as_its_types_say() -> None:
    misspelt = "module 'ghnqat_sdk' has no attribute 'predict_quantised_params'"
    assert run(str(ROOT / "tests" / "typed" / "program.py")) == f"{misspelt}\n(8, 10)\n"


# Public names


def test_public_names_are_sorted_and_exist() -> None:
    assert ghnqat_sdk.__all__ == sorted(ghnqat_sdk.__all__)
    assert [name for name in ghnqat_sdk.__all__ if not hasattr(ghnqat_sdk, name)] == []


@pytest.mark.parametrize("name", [name for name in ghnqat_sdk.__all__ if name != "__version__"])
def test_public_name_is_documented(name: str) -> None:
    public = getattr(ghnqat_sdk, name)
    assert public.__doc__
    assert not public.__doc__.startswith(f"{name}(")  # what a dataclass without a docstring gets
    methods = [
        method
        for key, method in vars(public).items()
        if inspect.isfunction(method) and not key.startswith("_")
    ]
    assert [method.__qualname__ for method in methods if not method.__doc__] == []
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert f"::: ghnqat_sdk.{name}\n" in page


# Dependencies


def test_what_the_package_imports_is_declared_and_what_is_declared_is_imported() -> None:
    extras = project()["optional-dependencies"]
    optional = [bounds(extras[name]) for name in ("plot", "onnx", "torchao", "train")]
    declared = bounds(project()["dependencies"]).keys() | {n for extra in optional for n in extra}
    # .numpy() needs numpy, without an import; torch brings Triton along where there is one.
    assert imported(PACKAGE) - {"triton"} | {"numpy"} == declared


def test_what_tests_and_examples_import_is_in_the_test_extra() -> None:
    extras = project()["optional-dependencies"]
    assert "ghnqat-sdk[plot,train,onnx,torchao]" in extras["test"]
    own = bounds(extras["test"]).keys() | {"typing_extensions"}  # torch brings the latter
    others = imported(ROOT / "tests") | imported(ROOT / "examples") | imported(ROOT / "benchmarks")
    local = {
        path.stem
        for folder in ("tests", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    # Some benchmarks and tests leave out, or are for, what needs the last ones.
    optional = {"numpy", "scipy", "sklearn", "timm", "ppuda", "ghn3", "executorch"}
    assert others - local - imported(PACKAGE) - optional <= own


def test_the_lowest_versions_that_are_tried_are_the_lower_bounds() -> None:
    extras = project()["optional-dependencies"]
    names = ("plot", "onnx", "torchao", "train", "test")
    declared = bounds([*project()["dependencies"], *(r for name in names for r in extras[name])])
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {n: _numbers(pinned.get(n, "0")) for n in declared} == {
        n: _numbers(v) for n, v in declared.items()
    }


def _numbers(version: str) -> tuple[int, ...]:
    """1.26 and 1.26.0 are one version."""
    padded = [*map(int, version.split(".")), 0, 0]
    return tuple(padded[:3])
