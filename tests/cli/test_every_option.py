"""Every option of every command of both scripts, with every kind of value that it cannot take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghnqat_sdk.cli import arguments, main, paths, train

SCRIPTS = {"ghnqat": main, "ghnqat-train": train}
LONG = "9" * 5000
NO_TEXT = ["", " ", "a\0b", "a\ud800b"]
NO_NUMBER = ["", "x", "1.5.2", "nan", "inf", "1,2", LONG, "²"]
NO_BITS = ["", "4", "4,4,4", "1,4", "4,9", "x,y", "4,", "4.0,4", "4,4;", LONG]
NO_FOLDER = [*NO_TEXT, "file", "no/such/folder", "/proc/none/x"]
ADVICE = re.compile(r"(?i)\b(Write|Name|Make|Leave|Add|Choose|Train|Start|See)\b")

BAD = {
    arguments.bits_pair: [*NO_BITS, "*=4,4"],
    arguments.bits_by_layer: [*NO_BITS, "=4,4", "*=", "*=4", "*=4,4;*=2,2", "*=4,4;4,4"],
    arguments.bit_width: ["", "1", "9", "-4", "4.0", "4,4", LONG],
    arguments.shape: ["", "0,3,32,32", "1,-3,32,32", "a,b", "1,3,32,", "99999,3,999,999", LONG],
    arguments.device: ["", "foo", "cuda:x", "cpu:1", "cuda:", "meta", " cpu"],
    arguments.hypernetwork_name: [*NO_FOLDER, "./my-ghn", "runs/x/last", "../x", "a:b", "folder"],
    arguments.revision: [*NO_TEXT, "../x"],
    arguments.assignment: [
        "", "seed", "=1", "a b=1", "nosuch=1", "seed=x", "seed=-1", "sampling=3", "data=null",
        "networks.9.share=1",
    ],
    arguments.recipe_name: [*NO_TEXT, "nope", "../all-bits"],
    arguments.model_name: [
        *NO_TEXT, "../x", ":", "a:", ":b", "a b", "id/3", "no/id/3", "a/b:c", "-", "deepnets/id",
        "deepnets/id/²", "deepnets/id/-1", "deepnets/no/3", f"deepnets/id/{LONG}", "resnet999",
        "deepnets/id/99999", "families/test/99999", "no_such_module:make", "os:path", "os:getcwd",
    ],
    paths.IMAGES: [*NO_FOLDER, "folder", "no-classes", "one-class", "file-for-folder", "../x"],
    paths.FILE: [*NO_TEXT, "folder", "no/such/file", "file/x", "/proc/none"],
    paths.FOLDER: [*NO_TEXT, "file", "file/x", "/proc/none"],
    paths.PICTURE: [
        *NO_TEXT, "graph.gif", "graph", "folder.png", "no/such/graph.png", "/proc/graph.png",
        "file/graph.png",
    ],
    paths.EXPORTED: [
        *NO_TEXT, "model.pt", "model", "no/such/model.onnx", "folder.onnx", "file/x.onnx",
    ],
    paths.TENSORS: [
        *NO_TEXT, "model.pt", "folder.safetensors", "no/x.safetensors", "file/x.safetensors",
        "/proc/x.safetensors",
    ],
}  # fmt: skip
"""By converter."""

CONTENTS = {
    "config": {"empty": b"", "half.json": b"{", "list.json": b"[]", "bytes.json": b"\xff\xfe\x00",
               "fields.json": b'{"nonsense": 1}', "value.json": b'{"seed": -1, "epochs": "many"}'},
    "results": {"text.jsonl": b"my notes", "json.jsonl": b'{"a": 1}', "bytes.jsonl": b"\xff\x00"},
}  # fmt: skip
"""By option: files that are there and hold something else."""


def bad_values(action: argparse.Action) -> list[str]:
    """What an option cannot take. A new converter needs its line in the table above."""
    if action.choices is not None:
        return ["", "no such choice"]
    if isinstance(action.type, (arguments.Whole, arguments.Real)):
        outside = [str(action.type.least - 1), str(action.type.most + 1)]
        return [*NO_NUMBER, *outside]
    return [*BAD[action.type], *CONTENTS.get(action.dest, {})]


def commands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for script, module in SCRIPTS.items():
        (chosen,) = (a for a in module.make_parser()._actions if a.dest == "command")
        yield from ((script, name, parser) for name, parser in chosen.choices.items())


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest != "help"]


GOOD = {
    "model": "deepnets/id/20", "name": "all-bits", "run": "run", "data": "{data}", "output": "new",
    "steps": "1", "minutes": "1", "exported": "model.onnx", "images": "cat.jpg",
}  # fmt: skip


def command_line(parser: argparse.ArgumentParser, wrong: argparse.Action, value: str) -> list[str]:
    """The required arguments as they should be, and one that is wrong."""
    words: list[str] = []
    for action in options(parser):
        if action is wrong:
            words += [f"{action.option_strings[0]}={value}"] if action.option_strings else [value]
        elif action.required:
            words += [*action.option_strings[:1], GOOD[action.dest]]
    if wrong.dest in ("data", "plot") and parser.prog == "ghnqat inspect":
        words += ["--bits", "4,4"]
    return words


def every_mistake() -> Iterator[tuple[str, str, argparse.Action]]:
    for script, name, parser in commands():
        for action in options(parser):
            yield pytest.param(script, name, action, id=f"{script}-{name}-{action.dest}")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, an empty folder, folders that are named like files, folders that are no
    data, a run, and files that hold something else than is expected."""
    folders = ["folder", "folder.png", "folder.safetensors", "folder.onnx", "run"]
    for split in ("train", "test"):
        folders += [f"no-classes/{split}", f"one-class/{split}/cat"]
    for folder in (*folders, "file-for-folder"):
        (tmp_path / folder).mkdir(parents=True)
    files = ["file", "run/run.json", "run/checkpoint.safetensors"]
    for file in (*files, "file-for-folder/train", "file-for-folder/test"):
        (tmp_path / file).write_text("x")
    for contents in CONTENTS.values():
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> list[tuple[str, bytes]]:
    """Names and contents of everything inside."""
    found = sorted(folder.rglob("*"))
    return [(str(path), path.read_bytes() if path.is_file() else b"") for path in found]


def parser_of(script: str, command: str) -> argparse.ArgumentParser:
    return next(p for s, name, p in commands() if (s, name) == (script, command))


@pytest.mark.parametrize(("script", "command", "action"), list(every_mistake()))
def test_no_bad_value_is_taken(script, command, action, workplace, data, capsys):
    parser = parser_of(script, command)
    wrong = next(each for each in options(parser) if each.dest == action.dest)
    values = ["x"] if wrong.nargs == 0 else bad_values(wrong)
    before = listing(workplace)
    for value in values:
        line = [
            word.format(data=data) if "{" in word else word
            for word in command_line(parser, wrong, value)
        ]
        assert SCRIPTS[script].main([command, *line]) == 2, line
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"{script}: ")
        assert captured.err.count("\n") == 1, captured.err
        assert ADVICE.search(captured.err), captured.err
    assert listing(workplace) == before


@pytest.mark.parametrize(
    ("script", "command"), [pytest.param(s, n, id=f"{s}-{n}") for s, n, _ in commands()]
)
def test_no_unknown_or_missing_argument_is_taken(script, command, workplace, data, capsys):
    parser = parser_of(script, command)
    good = [word.format(data=data) for word in command_line(parser, argparse.Action([], ""), "")]
    required = [action for action in options(parser) if action.required]
    valued = [a.option_strings[0] for a in options(parser) if a.option_strings and a.nargs is None]
    lines = [[*good, "--no-such-option"], [*good, "one", "two", "three"]]
    lines += [[*good, option] for option in valued]
    lines += [[]] if required else []
    before = listing(workplace)
    for line in lines:
        assert SCRIPTS[script].main([command, *line]) == 2, line
        assert capsys.readouterr().err.count("\n") == 1
    assert listing(workplace) == before


def test_every_command_takes_json():
    without = [
        f"{script} {name}"
        for script, name, parser in commands()
        if "json" not in [a.dest for a in options(parser)]
    ]
    assert without == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_command_and_an_unknown_one_are_one_line(script, capsys):
    for line in ([], ["nothing"], ["--nothing"], [""]):
        assert SCRIPTS[script].main(line) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"{script}: ")
        assert captured.err.count("\n") == 1
