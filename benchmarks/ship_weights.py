"""Put a run's weights into the package as the default ones, in half precision and with their checksum.

    python benchmarks/ship_weights.py runs/mine/best

Afterwards, measure them (`python benchmarks/table1.py`) and write docs/weights.md.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from ghnqat_sdk import load_pretrained, save_pretrained

WEIGHTS = Path(__file__).parents[1] / "ghnqat_sdk" / "hypernetwork" / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what a run calls best/ or last/")
    folder = save_pretrained(load_pretrained(parser.parse_args().folder), WEIGHTS, dtype=torch.float16)
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "model.safetensors.sha256").write_text(f"{digest}  {weights.name}\n")
    print(f"{weights.stat().st_size:,} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
