"""Put a run's weights into the package as the default ones, in half precision.

    python benchmarks/ship_weights.py runs/decayed/last
    python benchmarks/ship_weights.py runs/decayed/last runs/decayed-before/last
    python benchmarks/ship_weights.py runs/decayed/last runs/decayed-before/last --output mean

Of several folders it is the mean: decayed branches of one stable run lie close together, and their
mean is mostly better than each. With --output it goes there, to be measured before it ships.
Their checksum is written beside them, and into docs/weights.md in place of the one before.
Afterwards, measure them: benchmarks/table1.py, families.py and qat_initialization.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import common
import torch

from ghnqat_sdk import GraphHypernetwork, load_pretrained, save_pretrained
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork.pretrained import WEIGHTS_FILE

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "ghnqat_sdk" / "hypernetwork" / "weights"
PAGE = ROOT / "docs" / "weights.md"
CHECKSUM_FILE = f"{WEIGHTS_FILE}.sha256"


def mean_of(sources: Sequence[Path]) -> GraphHypernetwork:
    """The mean of the weights in some folders.

    Raises:
        ArgumentError: they are of hypernetworks that are made differently.
    """
    first, *others = map(load_pretrained, sources)
    for source, other in zip(sources[1:], others, strict=True):
        if other.config != first.config:
            raise ArgumentError(
                f"The weights in {str(source)!r} are of another hypernetwork than those in "
                f"{str(sources[0])!r}. Name branches of one run."
            )
    states = [hypernetwork.state_dict() for hypernetwork in (first, *others)]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    first.load_state_dict(mean)
    return first


def ship(sources: Sequence[Path], target: Path) -> str:
    """Write the mean of what `load_pretrained` finds in `sources`; returns the SHA-256."""
    weights = save_pretrained(mean_of(sources), target, dtype=torch.float16) / WEIGHTS_FILE
    checksum = sha256(weights.read_bytes()).hexdigest()
    write_atomically(target / CHECKSUM_FILE, f"{checksum}  {WEIGHTS_FILE}\n".encode())
    return checksum


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="what runs call last/ or best/")
    parser.add_argument("--output", type=Path, help="folder to write to instead of the package")
    options = parser.parse_args()
    if options.output is not None:
        print(f"{options.output}: SHA-256 {ship(options.folders, options.output)}")
        return
    before = (WEIGHTS / CHECKSUM_FILE).read_text().split()[0]
    checksum = ship(options.folders, WEIGHTS)
    page = PAGE.read_text(encoding="utf-8").replace(before, checksum)
    write_atomically(PAGE, page.encode())
    print(f"{(WEIGHTS / WEIGHTS_FILE).stat().st_size:,} bytes, SHA-256 {checksum}")


if __name__ == "__main__":
    main()
