"""What the built distributions hold, listed and checked: python .ci/artifacts.py DIST"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

LIMIT = 20_000_000
"""Bytes of a wheel."""
PACKAGE = (
    "py.typed",
    "hypernetwork/weights/config.json",
    "hypernetwork/weights/model.safetensors",
    "hypernetwork/weights/model.safetensors.sha256",
    "training/kernels.cpp",
    "training/depthwise.cpp",
    "training/numbers.h",
)
SOURCE = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "NOTICE", "README.md", "pyproject.toml")
FOREIGN = {"tests", "benchmarks", "examples", "docs", "runs", "results", "__pycache__"}
SUFFIXES = {".log", ".jsonl", ".pyc", ".so", ".pt", ".pth", ".jpg", ".png"}


def listed(title: str, sizes: dict[str, int]) -> None:
    print(f"{title}: {len(sizes)} files, {sum(sizes.values()):,} bytes")
    for name, size in sorted(sizes.items()):
        print(f"{size:>10,}  {name}")


def foreign(names: list[str]) -> list[str]:
    """Names of what belongs to nobody who installs the package."""
    paths = [Path(name) for name in names]
    return [str(p) for p in paths if FOREIGN & {*p.parts} or p.suffix in SUFFIXES]


def problems_of_wheel(wheel: Path, recipes: int) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    listed(wheel.name, sizes)
    (information,) = {name.split("/")[0] for name in sizes if name.endswith(".dist-info/METADATA")}
    wanted = [f"ghnqat_sdk/{name}" for name in PACKAGE]
    wanted += [f"{information}/licenses/{name}" for name in ("LICENSE", "NOTICE")]
    found = [name for name in sizes if name.startswith("ghnqat_sdk/training/recipes/")]
    tops = {name.split("/")[0] for name in sizes}
    problems = [f"{name} is missing" for name in wanted if name not in sizes]
    problems += [f"{name} does not belong into it" for name in foreign(list(sizes))]
    problems += [] if tops == {"ghnqat_sdk", information} else [f"it has more folders: {tops}"]
    problems += [] if len(found) == recipes else [f"{len(found)} of {recipes} recipes are there"]
    problems += [] if wheel.stat().st_size < LIMIT else [f"it has more than {LIMIT:,} bytes"]
    return [f"{wheel.name}: {problem}" for problem in problems]


def problems_of_source(source: Path) -> list[str]:
    with tarfile.open(source) as archive:
        members = {item.name: item.size for item in archive.getmembers() if item.isfile()}
    sizes = {name.partition("/")[2]: size for name, size in members.items()}
    listed(source.name, sizes)
    wanted = [*SOURCE, *(f"ghnqat_sdk/{name}" for name in PACKAGE)]
    problems = [f"{name} is missing" for name in wanted if name not in sizes]
    problems += [f"{name} does not belong into it" for name in foreign(list(sizes))]
    return [f"{source.name}: {problem}" for problem in problems]


def main() -> None:
    folder = Path(sys.argv[1])
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    package = Path(__file__).resolve().parents[1] / "ghnqat_sdk"
    recipes = len([*package.glob("training/recipes/*.json")])
    problems = [*problems_of_source(source), *problems_of_wheel(wheel, recipes)]
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
