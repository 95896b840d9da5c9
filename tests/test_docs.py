"""What README.md, docs/ and examples/ show works: every Python block, every command line, every
example."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ghnqat_sdk
from ghnqat_sdk import predict_quantized_params
from ghnqat_sdk.cli import main as cli
from ghnqat_sdk.cli import train as training_cli
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.folder import recipe_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
PARSERS = {"ghnqat": cli.make_parser, "ghnqat-train": training_cli.make_parser}
SMALL = {
    "quickstart": ["--images", "20"],
    "qat_finetune": ["--steps", "2", "--batch", "8", "--images", "20"],
    "image_folder": [
        *("--model", "squeezenet1_1", "--size", "32", "--steps", "2", "--batch", "8"),
        *("--plot", "confused.png", "--output", "model.onnx"),
    ],
    "inspect_graph": ["resnet18"],
    "search_under_budget": [
        *("--networks", "4", "--finalists", "0", "--images", "20", "--steps", "1", "--batch", "8"),
    ],
    "torchvision_models": ["squeezenet1_1", "mobilenet_v3_small"],
    "train_hypernetwork": ["--steps", "2"],
}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line where it starts, text) of the fenced blocks in one language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.fixture
def workplace(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder but for the images that the pages read."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_python_blocks_of_a_page_run_from_top_to_bottom(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ModuleType("page")  # where configs find the classes that a page defines
    for line, text in blocks(page, "python"):
        named = re.match(r"# (\w+)\.py\n", text)  # a module of its own, which others import
        module = ModuleType(named[1]) if named else whole
        monkeypatch.setitem(sys.modules, module.__name__, module)
        code = compile("\n" * line + text, str(page), "exec", dont_inherit=True)
        exec(code, vars(module))


@pytest.mark.parametrize("page", PAGES[1:], ids=names(PAGES[1:]))
def test_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 150


def shown_commands() -> list[list[str]]:
    texts = [text.replace("\\\n", " ") for page in PAGES for _, text in blocks(page, "bash")]
    lines = [line for text in texts for line in text.splitlines()]
    commands = [shlex.split(line.partition(" # ")[0]) for line in lines]
    module = "ghnqat_sdk.cli.train"
    launched = [["ghnqat-train", *c[c.index(module) + 1 :]] for c in commands if module in c]
    return [c for c in commands if c and c[0] in PARSERS] + launched


@pytest.mark.parametrize("command", shown_commands(), ids=" ".join)
def test_shown_command_lines_are_understood(command: list[str]) -> None:
    program, *arguments = command
    assert callable(PARSERS[program]().parse_args(arguments).handler)


def test_every_example_is_tested() -> None:
    assert set(SMALL) == {path.stem for path in (ROOT / "examples").glob("*.py")} - {"models"}


@pytest.mark.parametrize("name", SMALL)
def test_example_runs(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module(name)
    assert f"python examples/{name}.py" in example.__doc__
    example.main(SMALL[name])
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_no_placeholder_is_left(path: Path) -> None:
    assert re.findall(r"\{\{.*", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_local_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_training_page_names_every_field_and_recipe() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [
        name for name in (*RunConfig.model_fields, *recipe_names()) if f"`{name}`" not in text
    ] == []


def test_predict_page_names_every_argument() -> None:
    text = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    arguments = inspect.signature(predict_quantized_params).parameters
    assert [name for name in arguments if f"`{name}`" not in text] == []


def test_api_page_shows_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    public = [name for name in ghnqat_sdk.__all__ if not name.startswith("_")]
    assert [name for name in public if f"::: ghnqat_sdk.{name}\n" not in text] == []


def test_weights_page_describes_the_weights_that_ship() -> None:
    installed = Path(ghnqat_sdk.__file__).parent / "hypernetwork" / "weights"
    checksum = (installed / "model.safetensors.sha256").read_text().split()[0]
    assert checksum in (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_files_of_the_repository_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:benchmarks|examples|ghnqat_sdk|tests)/[\w./-]+\.\w+)", text)
    package = Path(ghnqat_sdk.__file__).parents[1]
    found = [(package if name.startswith("ghnqat_sdk/") else ROOT) / name for name in named]
    assert [path for path in found if not path.exists()] == []


def test_readme_names_the_oldest_python() -> None:
    (oldest,) = re.findall(
        r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f" {page.name}\n" not in navigation] == []
