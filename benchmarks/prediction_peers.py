"""Time of a prediction beside the hypernetworks that were published before.

    python benchmarks/prediction_peers.py --ppuda ../ppuda --ghn3 ../ghn3

Takes checkouts of github.com/facebookresearch/ppuda (GHN-2: 32 wide, ConvNets of CIFAR-10) and
github.com/SamsungSAILMontreal/ghn3 (GHN-3-T: 64 wide, three layers), whose requirements must be
installed. All three predict a torchvision classifier with ten classes from the module to the
module, on one thread, in turn; times are medians of processor time in milliseconds. Peers have
random weights, which takes the same time.
"""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import common
import torch
import torchvision
from torch import nn

from ghnqat_sdk import load_pretrained, predict_quantized_params

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121")
Predict = Callable[[nn.Module], object]


def ours() -> Predict:
    hypernetwork = load_pretrained()
    return lambda model: predict_quantized_params(model, hypernetwork=hypernetwork)


def ghn2(checkout: Path) -> Predict:
    sys.path.insert(0, str(checkout))
    from ppuda.ghn.nn import GHN

    settings = {"weight_norm": True, "ve": True, "layernorm": True, "hid": 32}
    return _peer(GHN((64, 64, 11, 11), num_classes=10, **settings))


def ghn3(checkout: Path) -> Predict:
    sys.path.insert(0, str(checkout))
    from ghn3 import GHN3

    settings = {"weight_norm": True, "ve": True, "layernorm": True, "hid": 64, "layers": 3}
    return _peer(GHN3((64, 64, 11, 11), num_classes=10, heads=8, **settings))


def _peer(hypernetwork: nn.Module) -> Predict:
    hypernetwork.eval()

    def predict(model: nn.Module) -> object:
        """Into a copy, as ours; a peer writes into the model that it is given."""
        twin = copy.deepcopy(model)
        twin.expected_input_sz = 32  # the images that it is run on to find its graph
        with contextlib.redirect_stdout(io.StringIO()):
            return hypernetwork(twin)

    return predict


def processor_ms(predict: Predict, model: nn.Module) -> float:
    start = time.process_time()
    predict(model)
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--ppuda", type=Path, help="checkout of ppuda")
    parser.add_argument("--ghn3", type=Path, help="checkout of ghn3")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    predictors = {"ours": ours()}
    if options.ppuda:
        predictors["GHN-2"] = ghn2(options.ppuda)
    if options.ghn3:
        predictors["GHN-3-T"] = ghn3(options.ghn3)

    print(common.head(["processor time, ms", *predictors]))
    for name in MODELS:
        model = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
        for predict in predictors.values():
            predict(model)
        rounds = [
            [processor_ms(predict, model) for predict in predictors.values()]
            for _ in range(options.repeats)
        ]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print(common.row([name, *(f"{median:.0f}" for median in medians)]), flush=True)


if __name__ == "__main__":
    main()
