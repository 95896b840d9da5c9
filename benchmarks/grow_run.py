"""Give a run that has learned a hypernetwork of twice the size, which computes the same at first.

    python benchmarks/grow_run.py runs/stable runs/wide
    ghnqat-train run --data data/cifar10 --output runs/wide --resume --steps 100000

Width of the encoder, attention heads and hidden size of the decoder double (Net2Net, Chen et al.
2016). Every feature has a twin of the same value, and whatever reads it reads half of either, plus
and minus random numbers half as large, so that twins learn different things. Banks, places and
tables of outputs stay. The optimizer's state is left out: it starts anew.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.training.checkpoint import load_training_state, save_training_state, writing
from ghnqat_sdk.training.config import load_config
from ghnqat_sdk.training.folder import RUN_FILE

MODEL, AVERAGE = "model.", "average.module."
NOISE = 0.5


class Rule(NamedTuple):
    """Dimensions of a tensor that double.

    Attributes:
        made: Of features that it makes, -1 for none.
        read: Of features that it reads.
        blocks: How many features of their own stand one after another in `made`.
    """

    made: int = -1
    read: int = -1
    blocks: int = 1


def rule_of(name: str, encoder: TransformerConfig) -> Rule:
    """For a tensor of the hypernetwork."""
    rules = {
        "encoder.summary": Rule(made=0),
        "encoder.embedding.op.weight": Rule(made=1),
        "encoder.embedding.features.0.weight": Rule(made=0),
        "encoder.embedding.*_bits.weight": Rule(made=0),
        "encoder.distance.weight": Rule(made=1, blocks=encoder.layers),  # (buckets, layers · heads)
        "encoder.*.qkv.weight": Rule(made=0, read=1, blocks=3),
        "encoder.*.qkv.bias": Rule(made=0, blocks=3),
        "encoder.*norm*": Rule(made=0),
        "encoder.*.weight": Rule(made=0, read=1),
        "encoder.*.bias": Rule(made=0),
        "decoder.position": Rule(made=2, read=3),  # (kernel, kernel, hidden, width)
        "decoder.place_*": Rule(made=0),
        "decoder.vector_in.weight": Rule(made=0, read=1),
        "decoder.vector_in.bias": Rule(made=0),
        "decoder.dense.weight": Rule(read=2),
        "decoder.depthwise.weight": Rule(read=1),
        "decoder.classes.weight": Rule(read=2),
        "decoder.vectors.weight": Rule(read=2),
        "decoder.banks.gate.weight": Rule(read=1),
    }
    return next((rule for pattern, rule in rules.items() if fnmatchcase(name, pattern)), Rule())


def doubled(x: Tensor, rule: Rule, noise: float) -> Tensor:
    """A tensor of the larger hypernetwork: twins of what it makes, and half of what it reads, plus
    and minus random numbers of a deviation of `noise` times its own."""
    if rule.read >= 0:
        apart = torch.randn(x.shape) * x.std() * noise
        x = torch.cat([x / 2 + apart, x / 2 - apart], rule.read)
    if rule.made >= 0:
        blocks = x.chunk(rule.blocks, rule.made)
        x = torch.cat([twin for block in blocks for twin in (block, block)], rule.made)
    return x


def grown_state(tensors: dict[str, Tensor], encoder: TransformerConfig) -> dict[str, Tensor]:
    """Of a run's state, without the optimizer's."""
    torch.manual_seed(0)
    found = {n: x for n, x in tensors.items() if not n.startswith("optimizer.")}
    for name in [n for n in found if n.startswith(MODEL)]:
        own = name.removeprefix(MODEL)
        rule, before = rule_of(own, encoder), found[name]
        found[name] = doubled(before, rule, NOISE)
        # The average is apart from the model by a small difference, which grows without noise.
        found[AVERAGE + own] = found[name] + doubled(found[AVERAGE + own] - before, rule, 0.0)
    return found


def grown_config(config: HypernetworkConfig) -> HypernetworkConfig:
    """Of twice the size."""
    encoder: Any = config.encoder
    wide = encoder.model_copy(update={"width": 2 * encoder.width, "heads": 2 * encoder.heads})
    deep = config.decoder.model_copy(update={"hidden": 2 * config.decoder.hidden})
    return config.model_copy(update={"encoder": wide, "decoder": deep})


def grow(folder: Path, output: Path) -> dict[str, Any]:
    """Write the run in `folder`, with a hypernetwork of twice the size, to `output`; returns its
    facts.

    Raises:
        ArgumentError: no run there, one in `output`, or one that cannot be grown.
    """
    if (output / RUN_FILE).exists():
        raise ArgumentError(f"{str(output)!r} holds a run. Choose another folder.")
    config = load_config(folder / RUN_FILE)
    state = load_training_state(folder)
    if state is None:
        raise ArgumentError(f"{str(folder)!r} holds no state. Name the folder of a run.")
    tensors, facts = state
    encoder = config.hypernetwork.encoder
    if not isinstance(encoder, TransformerConfig):
        raise ArgumentError(
            f'The encoder is "{encoder.type}"; expected "transformer". Train a larger one anew.'
        )
    larger = config.model_copy(update={"hypernetwork": grown_config(config.hypernetwork)})
    facts = facts | {"optimizer": None}
    save_training_state(output, grown_state(tensors, encoder), facts)
    with writing(output):
        write_atomically(output / RUN_FILE, larger.model_dump_json(indent=2).encode())
    return facts


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("output", type=Path, help="folder of the larger one")
    options = parser.parse_args()
    facts = grow(options.run, options.output)
    print(f"{options.output}: step {facts['step']}, {facts['images'] / 1e6:.2f} M images")


if __name__ == "__main__":
    main()
