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
from collections.abc import Sequence
from functools import partial

import torch
from common import head, row
from exported import (
    Images,
    Line,
    classes,
    enlarged,
    measure_networks,
    options_of,
    percent,
    predicted,
    times_cells,
)
from pt2e_inductor import BITS, compiled, convolutions, integer_convolutions, lowered
from torch import Tensor, nn

from ghnqat_sdk import to_float
from ghnqat_sdk.data import load_images

_BATCH = 50
_EPSILON = 1e-5


def prepared_for_qat(twin: nn.Module, images: Tensor) -> torch.fx.GraphModule:
    """The float twin with fake quantizers on every edge that Inductor has integers for."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    _agree_on_epsilon(twin)
    _pad_before_pools(twin)
    settings = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    batch = ({0: torch.export.Dim.AUTO},)
    if hasattr(twin, "aux_logits"):
        twin.aux_logits = False  # heads beside the last one, which evaluation has not either
    # Only a strict export says which module a node is of, and the quantizer asks.
    program = torch.export.export(twin.train(), (images,), dynamic_shapes=batch, strict=True)
    prepared = prepare_qat_pt2e(program.module(), x86.X86InductorQuantizer().set_global(settings))
    return move_exported_model_to_eval(prepared)


def _agree_on_epsilon(twin: nn.Module) -> None:
    """Give norms of fixed statistics the epsilon that torchao takes all of them to have, 1e-5; they
    compute the same."""
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_var += norm.eps - _EPSILON
            norm.eps = _EPSILON


def _pad_before_pools(twin: nn.Module) -> None:
    """Give pools that round sizes up a padding instead, which Inductor does not lose: its integer
    pools round down, whatever was asked for (PyTorch 2.14)."""
    for parent in list(twin.modules()):
        for name, pool in parent.named_children():
            if isinstance(pool, nn.MaxPool2d) and pool.ceil_mode:
                setattr(parent, name, _PaddedPool(pool.kernel_size, pool.stride, pool.padding))


class _PaddedPool(nn.MaxPool2d):
    """What `MaxPool2d` with `ceil_mode` computes, for square windows."""

    def forward(self, images: Tensor) -> Tensor:
        right, below = (self._missing(images.shape[side]) for side in (-1, -2))
        padded = nn.functional.pad(images, (0, right, 0, below), value=-torch.inf)
        return super().forward(padded)

    def _missing(self, length: int) -> int:
        """Elements that the last window lacks; one that would lie in the padding alone is none."""
        missing = -(length + 2 * self.padding - self.kernel_size) % self.stride
        return missing if missing + self.padding < self.kernel_size else 0


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


def measure(
    name: str, images: Images, training: tuple[Tensor, Tensor], options: argparse.Namespace
) -> Line:
    """What one network gives."""
    from torchao.quantization.pt2e import disable_observer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    qmodel = predicted(name, BITS, images)
    twin = to_float(copy.deepcopy(qmodel)).eval()
    line = {"network": name, "predicted": images.right(classes(qmodel, images.validation))}
    prepared = prepared_for_qat(copy.deepcopy(twin), images.chunks[0])
    with torch.no_grad():
        for chunk in images.chunks:  # ranges of every edge
            prepared(chunk)
    prepared.apply(disable_observer)
    line["rounded"] = images.right(classes(prepared, images.validation))
    train(prepared, *training, options.steps, options.rate)
    trained = classes(prepared, images.validation)
    line["trained"] = images.right(trained)

    program = convert_pt2e(prepared)
    with torch.no_grad():
        in_kernels = lowered(program, images.one)
    (line["float_ms"], line["integer_ms"]), chosen = compiled(twin, program, images)
    line |= {
        "integers": images.right(chosen),
        "same_class": percent(chosen == trained),
        "convolutions": convolutions(twin, images.one),
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
                    *times_cells(line),
                ]
            )
        )
    return "\n".join(rows)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of QAT, of 50 images")
    parser.add_argument("--rate", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    options = parser.parse_args()
    train_set = load_images(options.data, "train").sample(options.images, seed=1)
    training = enlarged(train_set, options.size), train_set.labels
    measure_networks(options, partial(measure, training=training, options=options), table)


if __name__ == "__main__":
    main()
