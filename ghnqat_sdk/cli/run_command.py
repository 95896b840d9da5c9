"""`ghnqat run`: classify images with an exported model."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from typing import Any

from ghnqat_sdk.cli.arguments import Real, Whole
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.paths import EXPORTED, FILE, check_input_file
from ghnqat_sdk.cli.words import advising
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json
from ghnqat_sdk.progress import working

MOST_CLASSES = 1000
MOST_THREADS = 1024
MOST_WHITE = 65535
_WORDS = {
    "OnnxClassifier.read(…, white=": "--white ",
    "), or another": ", or another",
    "white=": "--white ",
}


def add_run(commands: Any) -> None:
    """Add `ghnqat run` to the parser's commands."""
    run = add_command(
        commands,
        "run",
        "classify images with an exported model",
        check=_check,
        run=_run,
        description="Classify images with a file that export_onnx(..., images=...) wrote, in ONNX "
        "Runtime. Image size, normalization and classes are those in the file.",
    )
    run.add_argument("exported", type=EXPORTED, metavar="MODEL.onnx", help="the exported model")
    run.add_argument("images", type=FILE, nargs="+", metavar="IMAGE", help="JPEG, PNG and the like")
    run.add_argument(
        "--top",
        type=Whole(1, MOST_CLASSES),
        default=1,
        help="how many classes to print (default: 1)",
    )
    run.add_argument(
        "--threads",
        type=Whole(1, MOST_THREADS),
        default=1,
        help="that compute one image (default: 1)",
    )
    run.add_argument(
        "--time", action="store_true", help="measure the time of one image as well, without reading"
    )
    run.add_argument(
        "--white",
        type=Real(1, MOST_WHITE),
        help="the value of white in grey files of more than 8 bits, as 4095 of 12 (default: 255 or "
        "65535, if the largest value of all is above the half of it)",
    )
    add_json_flag(run)


def _check(options: Namespace) -> None:
    check_input_file("MODEL.onnx", options.exported)
    for image in options.images:
        check_input_file("IMAGE", image)
    if find_spec("onnxruntime") is None:
        raise ArgumentError(
            'ONNX Runtime is not installed. Write pip install "ghnqat-sdk[onnx]", or pip install '
            "onnxruntime"
        )


def _run(options: Namespace) -> None:
    with working("loading the model"):
        from ghnqat_sdk.export.classifier import OnnxClassifier

        classifier = OnnxClassifier(options.exported, threads=options.threads)
    with advising(_WORDS):
        inputs = classifier.read(*options.images, white=options.white)
    found = [classifier.top(x[None], options.top) for x in inputs]
    milliseconds = classifier.milliseconds(inputs[:1]) if options.time else None
    if options.json:
        print(as_json(_facts(options, found, milliseconds)))
        return
    width = max(map(len, options.images))
    for image, classes in zip(options.images, found, strict=True):
        words = "  ".join(f"{name} {100 * share:.1f} %" for name, share in classes)
        print(f"{image:{width}}  {words}")
    if milliseconds is not None:
        threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
        print(f"one image: {milliseconds:.2f} ms (median, {threads})")


def _facts(options: Namespace, found: list[list[tuple[str, float]]], ms: float | None) -> Any:
    images = [
        {"image": image, "classes": [{"class": name, "probability": share} for name, share in top]}
        for image, top in zip(options.images, found, strict=True)
    ]
    facts = {"model": options.exported, "images": images}
    return facts if ms is None else facts | {"milliseconds": ms, "threads": options.threads}
