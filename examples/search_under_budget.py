"""Which network, at which bits, is worth training? Search a space under a budget, then train the
choice beside two others.

    python examples/search_under_budget.py
    python examples/search_under_budget.py --data data/cifar10 --networks 1000 --steps 1000 \\
        --processes 2

Networks come from the test splits of the spaces that hypernetworks are evaluated on: 1,000 in all.
The choice is trained beside a network drawn from those within the budget, and beside the largest of
these, all from their predicted start and in the same way. The first command looks at 12 networks,
on the images of the tests, which are too few to train on; the second one is long, and goes on where
it was interrupted with `--results FILE`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from image_folder import confusions, finetune, share_right
from models import SAMPLE_IMAGES

from ghnqat_sdk import calibrate, predict_quantized_params, search_architectures
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.search.joint import Candidate
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.protocol import Architecture

SPACES = (Families("test"), DeepNets("id"), DeepNets("deep"))
CALIBRATION = 256


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    train, val, test = (load_images(options.data, split) for split in ("train", "val", "test"))
    places = [(space, index) for space in SPACES for index in range(len(space))]
    drawn = [s[i] for s, i in random.Random(options.seed).sample(places, options.networks)]
    networks = {"/".join(map(str, network.key)): network for network in drawn}
    found = search_architectures(
        drawn,
        train.sample(min(CALIBRATION, len(train)), seed=0),
        weight_bytes=options.weight_bytes,
        finalists=options.finalists,
        validation=val.sample(min(options.images, len(val)), seed=0),
        processes=options.processes,
        results=options.results,
    )
    print(f"{len(networks)} networks, {len(found.beyond)} of them beyond the budget")
    at_same_bits = [candidate for candidate in found.candidates if not candidate.mixed]
    chosen = {
        "best predicted": found.best,
        "largest": max(at_same_bits, key=lambda c: networks[c.name].parameter_count),
        "drawn": random.Random(options.seed).choice(at_same_bits),
    }
    print(f"{'':15}  {'network':18}  {'bits':>13}  predicted  trained")
    for role, candidate in chosen.items():
        accuracy = trained(candidate, networks[candidate.name], train, test, options)
        bits = "of each layer" if candidate.mixed else "W{}/A{}".format(*candidate.bits)
        print(
            f"{role:15}  {candidate.name:18}  {bits:>13}  {candidate.accuracy:7.1f} %  "
            f"{accuracy:5.1f} %",
            flush=True,
        )


def trained(
    candidate: Candidate,
    network: Architecture,
    train: ImageSet,
    test: ImageSet,
    options: argparse.Namespace,
) -> float:
    """Top-1 in percent on test images."""
    model = network.build(len(train.classes))
    batches = [images for images, _ in train.sample(CALIBRATION, seed=0).batches(64)]
    qmodel = predict_quantized_params(model, candidate.bits, calibration=batches)
    finetune(qmodel, train, options.steps, options.batch, options.learning_rate)
    calibrate(qmodel, batches)
    return 100 * share_right(confusions(qmodel, test))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=SAMPLE_IMAGES, help="image folder, or torchvision's CIFAR-10"
    )
    parser.add_argument("--networks", type=int, default=12, help="how many, up to 1000")
    parser.add_argument("--weight-bytes", type=float, default=200_000, help="of all layers")
    parser.add_argument(
        "--finalists", type=int, default=2, help="that get bits for each layer as well"
    )
    parser.add_argument("--images", type=int, default=500, help="that networks are compared on")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0, help="chooses the networks")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", metavar="FILE", help="an interrupted search goes on with it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
