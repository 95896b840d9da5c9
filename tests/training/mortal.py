"""The toys, one of which kills the process that asks for it, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from toys import Toy, Toys


class MortalToys(Toys):
    """Toys that die with the process at their `life`-th network, unless `grave` is there."""

    def __init__(self, split: str, life: int, grave: str) -> None:
        super().__init__(split)
        self.left = life
        self.grave = Path(grave)

    def __getitem__(self, index: int) -> Toy:
        self.left -= 1
        if self.left <= 0 and self.split == "train" and not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
