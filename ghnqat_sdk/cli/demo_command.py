"""`ghnqat demo`: what a prediction is worth, with nothing but the package."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import model_name
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.models import (
    add_bits,
    add_hypernetwork,
    build_model,
    check_prediction,
    loaded_hypernetwork,
    traced,
)
from ghnqat_sdk.cli.paths import FOLDER, check_output_folder
from ghnqat_sdk.files import as_json, replacing
from ghnqat_sdk.progress import working

if TYPE_CHECKING:
    from ghnqat_sdk.demo.comparison import Comparison

_CLASSES = 10
_SHAPE = (2, 3, 32, 32)
_PLOT = "starts.png"


def add_demo(commands: Any) -> None:
    """Add `ghnqat demo` to the parser's commands."""
    demo = add_command(
        commands,
        "demo",
        "see what a prediction is worth, on images that ship with the package",
        check=_check,
        run=_demo,
        description="Predict a model, calibrate it on 200 images of CIFAR-10 (JPEG) and classify "
        "200 others, beside the same model with random (He) parameters. Needs no network, no data "
        "and no training.",
    )
    demo.add_argument(
        "model",
        nargs="?",
        type=model_name,
        default="resnet18",
        help="as in predict, for images of 32 × 32 pixels and ten classes (default: resnet18)",
    )
    add_hypernetwork(demo)
    add_bits(demo)
    demo.add_argument(
        "--output",
        type=FOLDER,
        metavar="FOLDER",
        default="ghnqat-demo",
        help="folder for the plot (default: ghnqat-demo)",
    )
    add_json_flag(demo)


def _check(options: Namespace) -> None:
    check_prediction(options)
    check_output_folder("--output", options.output)


def _demo(options: Namespace) -> None:
    comparison = _comparison(options)
    plot = _plot(comparison, options)
    if options.json:
        facts = {"model": options.model, "bits": options.bits, "plot": plot}
        print(as_json(facts | comparison.facts()))
        return
    tested = sum(comparison.predicted.images)
    print(
        f"{options.model} at {_words(options.bits)}, without training: calibrated on "
        f"{comparison.calibration} images, tested on {tested} others, CIFAR-10 (JPEG)"
    )
    print(f"predicted start    {comparison.predicted}")
    print(f"random (He) start  {comparison.random}")
    if plot is None:
        print('no plot: matplotlib is not installed. Write pip install "ghnqat-sdk[plot]"')
    else:
        print(f"plot: {plot}")


def _comparison(options: Namespace) -> Comparison:
    from ghnqat_sdk.demo.comparison import compare_starts

    model = build_model(options.model, _CLASSES)
    traced(model, _SHAPE, source="The shape of the demo's images,")
    hypernetwork = loaded_hypernetwork(options)
    with working("predicting, calibrating and testing"):
        return compare_starts(
            model, options.bits, hypernetwork, first_last_bits=options.first_last_bits
        )


def _plot(comparison: Comparison, options: Namespace) -> str | None:
    """The file, where matplotlib is there to draw it."""
    if find_spec("matplotlib") is None:
        return None
    from ghnqat_sdk.demo.plot import plot_starts

    path = Path(options.output) / _PLOT
    path.parent.mkdir(parents=True, exist_ok=True)
    with working("drawing"), replacing(str(path)) as temporary:
        plot_starts(comparison, f"{options.model} at {_words(options.bits)}", temporary)
    return str(path)


def _words(bits: Any) -> str:
    """W4/A4, or the patterns as they were written."""
    if isinstance(bits, dict):
        return ", ".join(f"{pattern} {_words(pair)}" for pattern, pair in bits.items())
    return "W{}/A{}".format(*bits)
