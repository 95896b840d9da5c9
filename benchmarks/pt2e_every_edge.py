"""QAT of every edge through PT2E from predicted weights, lowered to Inductor's integer kernels.

For each network at W8/A8: right answers on validation images as predicted, with every edge rounded
before training, after some steps of norms and biases alone, and of the integer kernels; then
convolutions that became such kernels, roundings that are left between them, and milliseconds of one
image on one thread beside the float twin. Needs the torchao extra and a C++ compiler, and takes
minutes for each network. Lines are kept in --lines, and nothing is measured twice.

python benchmarks/pt2e_every_edge.py --data data/cifar10 --lines every_edge.jsonl
python benchmarks/pt2e_every_edge.py --data data/cifar10 --lines every_edge.jsonl \\
    --networks torchvision/resnet18 --steps 30
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from common import head, row, turns_ms
from networks import classifier
from onnx_export import Images, enlarged
from pt2e_inductor import (
    BITS,
    LEAST_SECONDS,
    TURNS,
    Line,
    convolutions,
    integer_convolutions,
    lowered,
    measure_networks,
    options_of,
)
from torch import Tensor, nn

from ghnqat_sdk import predict_quantized_params, to_float
from ghnqat_sdk.data import load_images

_BATCH = 50


def prepared_for_qat(twin: nn.Module, images: Tensor) -> torch.fx.GraphModule:
    """The float twin with fake quantizers on every edge that Inductor has integers for."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    settings = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    batch = ({0: torch.export.Dim.AUTO},)
    # Only a strict export says which module a node is of, and the quantizer asks.
    program = torch.export.export(twin.train(), (images,), dynamic_shapes=batch, strict=True)
    prepared = prepare_qat_pt2e(program.module(), x86.X86InductorQuantizer().set_global(settings))
    return move_exported_model_to_eval(prepared)


def train(prepared: nn.Module, images: Tensor, labels: Tensor, steps: int, rate: float) -> None:
    """Norms and biases alone, by norms' running statistics: a few hundred steps on few images make
    predicted weights worse."""
    vectors = [p for p in prepared.parameters() if p.ndim == 1]
    optimizer = torch.optim.Adam(vectors, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (_BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(prepared(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def classes(model: Callable[[Tensor], Tensor], images: Tensor, batch: int = _BATCH) -> Tensor:
    return torch.cat([model(x).argmax(1) for x in images.split(batch)])


def measure(
    name: str, images: Images, training: tuple[Tensor, Tensor], options: argparse.Namespace
) -> Line:
    """What one network gives."""
    from torch._inductor import config
    from torchao.quantization.pt2e import disable_observer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    torch.manual_seed(0)
    torch._dynamo.reset()
    chunks = images.calibration.split(64)
    qmodel = predict_quantized_params(
        classifier(name), BITS, calibration=chunks, example_inputs=chunks[0][:2]
    ).eval()
    twin = to_float(copy.deepcopy(qmodel)).eval()

    def right(chosen: Tensor) -> float:
        return round(100 * (chosen == images.labels).float().mean().item(), 1)

    line = {"network": name, "predicted": right(classes(qmodel, images.validation))}
    prepared = prepared_for_qat(copy.deepcopy(twin), chunks[0])
    with torch.no_grad():
        for chunk in chunks:  # ranges of every edge
            prepared(chunk)
    prepared.apply(disable_observer)
    line["rounded"] = right(classes(prepared, images.validation))
    train(prepared, *training, options.steps, options.rate)
    trained = classes(prepared, images.validation)
    line["trained"] = right(trained)

    image = images.validation[:1]
    program = convert_pt2e(prepared)
    with torch.no_grad():
        in_kernels = lowered(program, image)
    with config.patch(freezing=True), torch.no_grad():
        runs = [torch.compile(model) for model in (twin, program)]
        calls = [lambda run=run: run(image) for run in runs]
        line["float_ms"], line["integer_ms"] = turns_ms(calls, TURNS, LEAST_SECONDS)
        chosen = classes(runs[1], images.validation, batch=1)
    line |= {
        "integers": right(chosen),
        "same_class": round(100 * (chosen == trained).float().mean().item(), 1),
        "convolutions": convolutions(twin, image),
        "integer": integer_convolutions(in_kernels),
        "left": sum("dequantize" in str(node.target) for node in in_kernels.graph.nodes),
    }
    return line


def table(lines: Sequence[Line]) -> str:
    columns = [
        "network", "predicted", "every edge", "trained", "integers", "same class, %",
        "integer kernels", "left in float", "float, ms", "W8/A8, ms", "times",
    ]  # fmt: skip
    rows = [head(columns)]
    for line in lines:
        rows.append(
            row(
                [
                    line["network"].partition("/")[2],
                    *(line[key] for key in ("predicted", "rounded", "trained", "integers")),
                    line["same_class"],
                    f"{line['integer']} of {line['convolutions']}",
                    line["left"],
                    f"{line['float_ms']:.2f}",
                    f"{line['integer_ms']:.2f}",
                    f"{line['float_ms'] / line['integer_ms']:.2f}",
                ]
            )
        )
    return "\n".join(rows)


def main() -> None:
    options = options_of(__doc__)
    options.add_argument("--steps", type=int, default=60, help="of QAT, of 50 images")
    options.add_argument("--rate", type=float, default=1e-3, help="of Adam")
    options.add_argument("--images", type=int, default=2000, help="to train on")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images = Images.load(chosen.data, chosen.size)
    train_set = load_images(chosen.data, "train").sample(chosen.images, seed=1)
    training = enlarged(train_set, chosen.size), train_set.labels
    measure_networks(chosen, lambda name: measure(name, images, training, chosen), table)


if __name__ == "__main__":
    main()
