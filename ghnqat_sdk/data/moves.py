"""Images moved at random, as training shows them: flips and shifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moves:
    """How n images are moved: first flipped left to right, then shifted."""

    flip: Tensor
    """(n,) bool."""
    rows: Tensor
    """(n,) int64, pixels that the contents move down."""
    columns: Tensor
    """(n,) int64, pixels that they move to the right."""

    def sources(self, height: int, width: int, stride: float = 1) -> tuple[Tensor, Tensor]:
        """Which row (n, height) and column (n, width) of the unmoved map each moved cell shows.

        Cells of `stride` pixels move by the nearest whole number of cells; they may show what lies
        outside the map.
        """
        down = torch.round(self.rows / stride).long()
        right = torch.round(self.columns / stride).long()
        rows = torch.arange(height, device=down.device) - down[:, None]
        columns = torch.arange(width, device=right.device) - right[:, None]
        return rows, torch.where(self.flip[:, None], width - 1 - columns, columns)


def draw_moves(count: int, padding: int, generator: torch.Generator) -> Moves:
    """Flips half of the images and shifts each by -padding … padding pixels in both directions."""
    flip = torch.rand(count, generator=generator, device="cpu") < 0.5
    shifts = torch.randint(-padding, padding + 1, (2, count), generator=generator, device="cpu")
    return Moves(flip, *shifts)


def move_images(images: Tensor, moves: Moves) -> Tensor:
    """(n, C, H, W), normalized or raw, moved with zeros where a shift uncovers; channels_last."""
    height, width = images.shape[2:]
    rows, columns = moves.sources(height, width)
    # One cell of zeros all around stands for everything outside.
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    rows = rows.add_(1).clamp_(0, height + 1)
    columns = columns.add_(1).clamp_(0, width + 1)
    indices = torch.arange(len(images), device=images.device)
    return take_cells(padded, indices, rows, columns).permute(0, 3, 1, 2)


def take_cells(maps: Tensor, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n, h, w, C) of maps (N, H, W, C): maps[indices[i], rows[i, y], columns[i, x]]."""
    _, height, width, channels = maps.shape
    lines = indices.to(maps.device)[:, None] * height + rows.to(maps.device)
    cells = lines[:, :, None] * width + columns.to(maps.device)[:, None, :]
    # Several times faster than indexing with three tensors.
    taken = maps.reshape(-1, channels).index_select(0, cells.flatten())
    return taken.view(*cells.shape, channels)
