"""Publish the weights that ship, with a model card made from evaluations, and load them back.

    ghnqat evaluate --data data/cifar10 --space families --graphs 400 --bits 4,4 --json w4a4.json
    hf auth login
    python benchmarks/publish_weights.py w4a4.json

The repository is the one that `load_pretrained("hub")` looks for, unless `--repo` names another.
"""

from __future__ import annotations

import argparse

import torch

from ghnqat_sdk import load_pretrained, push_to_hub
from ghnqat_sdk.hypernetwork.names import DEFAULT, HUB_REPO


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", nargs="+", help="files of ghnqat evaluate --json")
    parser.add_argument("--weights", default=DEFAULT, help="folder (default: those that ship)")
    parser.add_argument("--repo", default=HUB_REPO, help="owner/name on the Hub")
    parser.add_argument("--data", default="CIFAR-10 (JPEG)", help="what they were trained on")
    parser.add_argument("--license", default="apache-2.0")
    options = parser.parse_args(arguments)
    hypernetwork = load_pretrained(options.weights)
    commit = push_to_hub(
        hypernetwork,
        options.repo,
        data=options.data,
        license=options.license,
        evaluations=options.evaluations,
    )
    loaded = load_pretrained(options.repo, revision=commit.rpartition("/")[2])
    tensors = loaded.state_dict()
    assert all(torch.equal(t, tensors[name]) for name, t in hypernetwork.state_dict().items())
    print(commit)


if __name__ == "__main__":
    main()
