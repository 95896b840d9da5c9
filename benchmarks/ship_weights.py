"""Put a run's weights into the package as the default ones, in half precision.

    python benchmarks/ship_weights.py runs/decayed/last

Their checksum is written beside them, and into docs/weights.md in place of the one before.
Afterwards, measure them: benchmarks/table1.py, families.py and qat_initialization.py.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import common
import torch

from ghnqat_sdk import load_pretrained, save_pretrained
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork.pretrained import WEIGHTS_FILE

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "ghnqat_sdk" / "hypernetwork" / "weights"
PAGE = ROOT / "docs" / "weights.md"
CHECKSUM_FILE = f"{WEIGHTS_FILE}.sha256"


def ship(source: Path, target: Path) -> str:
    """Write what `load_pretrained` finds in `source` to `target`; returns the SHA-256."""
    weights = save_pretrained(load_pretrained(source), target, dtype=torch.float16) / WEIGHTS_FILE
    checksum = sha256(weights.read_bytes()).hexdigest()
    write_atomically(target / CHECKSUM_FILE, f"{checksum}  {WEIGHTS_FILE}\n".encode())
    return checksum


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, help="what a run calls last/ or best/")
    options = parser.parse_args()
    before = (WEIGHTS / CHECKSUM_FILE).read_text().split()[0]
    checksum = ship(options.folder, WEIGHTS)
    page = PAGE.read_text(encoding="utf-8").replace(before, checksum)
    write_atomically(PAGE, page.encode())
    print(f"{(WEIGHTS / WEIGHTS_FILE).stat().st_size:,} bytes, SHA-256 {checksum}")


if __name__ == "__main__":
    main()
