"""`ghnqat predict`: a model's parameters into a file."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.models import (
    add_bits,
    add_hypernetwork,
    add_model,
    build_model,
    check_prediction,
    predicted,
    traced,
)
from ghnqat_sdk.cli.paths import TENSORS, check_output_file, replacing

if TYPE_CHECKING:
    from torch import nn


def add_predict(commands: Any) -> None:
    """The command and its options."""
    what = "predict a model's parameters and save them"
    parser = add_command(commands, "predict", what, check=_check, run=_predict)
    add_model(parser)
    add_hypernetwork(parser)
    add_bits(parser)
    parser.add_argument(
        "--head",
        choices=("auto", "predict", "keep"),
        default="auto",
        help="what happens to classifiers: predicted where the number of classes is the "
        "hypernetwork's, always, never (default: auto)",
    )
    parser.add_argument(
        "--output",
        type=TENSORS,
        metavar="FILE",
        help="write the predicted state_dict to this safetensors file",
    )
    add_json_flag(parser)


def _check(options: Namespace) -> None:
    check_prediction(options)
    if options.output is not None:
        check_output_file("--output", options.output)


def _predict(options: Namespace) -> None:
    from ghnqat_sdk.accounting import prediction_report

    model = build_model(options.model, options.classes)
    if options.input is not None:
        traced(model, options.input)  # a shape that does not fit is found before weights are read
    qmodel = predicted(options, model, options.head)
    if options.output is not None:
        _save(qmodel, options.output)
    report = prediction_report(qmodel)
    if options.json:
        facts = {"model": options.model, "bits": options.bits, "output": options.output}
        print(json.dumps(facts | vars(report)))
        return
    print(report)
    if options.output is not None:
        print(f"saved to {options.output}")


def _save(qmodel: nn.Module, path: str) -> None:
    from safetensors.torch import save_model

    with replacing(path) as temporary:
        save_model(qmodel, temporary)
