"""The package as it is installed: version, import, typing, public names."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import ghnqat_sdk

ROOT = Path(__file__).resolve().parents[1]
LATE = ("torchvision", "huggingface_hub", "networkx", "matplotlib", "PIL", "tensorboard", "onnx")
SUBMODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "ghnqat_sdk").rglob("*.py")
)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


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


def test_import_is_silent_and_leaves_heavy_packages_for_later() -> None:
    assert run("import ghnqat_sdk") == ""
    assert run(f"import sys, ghnqat_sdk; print([n for n in {LATE} if n in sys.modules])") == "[]\n"


def test_command_lines_start_without_heavy_packages() -> None:
    code = f"import sys, ghnqat_sdk.cli, ghnqat_sdk.cli.train; print([n for n in {LATE} if n in sys.modules])"
    assert run(code) == "[]\n"


def test_import_leaves_torch_as_it_was() -> None:
    code = """if True:
        import random, torch
        before = torch.get_rng_state(), random.getstate(), torch.get_num_threads(), torch.get_default_dtype()
        import ghnqat_sdk
        after = torch.get_rng_state(), random.getstate(), torch.get_num_threads(), torch.get_default_dtype()
        print(torch.equal(before[0], after[0]), before[1:] == after[1:])
    """
    assert run(code) == "True True\n"


def test_every_module_imports_without_a_warning() -> None:
    assert run(f"import importlib\nfor name in {SUBMODULES}: importlib.import_module(name)") == ""


def test_type_annotations_and_weights_are_shipped() -> None:
    package = resources.files("ghnqat_sdk")
    weights = [
        f"hypernetwork/weights/{name}"
        for name in ("config.json", "model.safetensors", "model.safetensors.sha256")
    ]
    assert [name for name in ("py.typed", *weights) if not package.joinpath(name).is_file()] == []


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
