"""Anchors: the boxes around each cell of the pyramid's levels that a dense head classifies and corrects."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["AnchorGrid", "flatten_levels", "padded_size"]

MULTIPLE = 32
RATIOS = (0.5, 1.0, 2.0)
_PLACE = 12
"""Bits of a row or a column in the number of an anchor: 4,096 cells, 16,384 pixels at a stride of 4."""


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return an image's (height, width), each rounded up to a multiple of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


def flatten_levels(maps: Sequence[Tensor], channels: int) -> Tensor:
    """Return maps `[N, anchors * channels, H, W]` as `[N, A, channels]`, in the order of the anchors."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels) for x in maps], dim=1)


class AnchorGrid:
    """The anchors of all levels, computed in fp32.

    An anchor's height / width is one of `ratios`, its area that of a square of side stride x scale. The anchors of a
    cell have their centre in its top left corner and are not rounded; those that stick out of the image stay. Their
    order is: level, row, column, ratio, scale.

    Args:
        strides: of the levels, in pixels, finest first.
        scales: sides in strides.
        ratios: height / width.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = RATIOS) -> None:
        self.strides = tuple(strides)
        self.per_cell = len(scales) * len(ratios)
        root = torch.tensor(tuple(ratios)).sqrt()
        self._base = []
        for stride in self.strides:
            # The order of operations decides the last bit, and with it ties between anchors.
            widths = (stride * (1 / root)[:, None] * torch.tensor(tuple(scales))).flatten()
            heights = (stride * root[:, None] * torch.tensor(tuple(scales))).flatten()
            self._base.append(torch.stack((-0.5 * widths, -0.5 * heights, 0.5 * widths, 0.5 * heights), dim=1))

    def boxes(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Return the anchors of each level, `[rows * columns * per_cell, 4]`, for levels of these (rows, columns)."""
        levels = []
        for (rows, columns), stride, base in zip(sizes, self.strides, self._base, strict=True):
            y = torch.arange(rows, device=device, dtype=torch.float32) * stride
            x = torch.arange(columns, device=device, dtype=torch.float32) * stride
            shift = torch.stack((x.repeat(rows), y.repeat_interleave(columns)) * 2, dim=1)
            levels.append((shift[:, None] + base.to(device)).flatten(0, 1))
        return levels

    def names(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Return a number of each anchor, int64, in the order of `boxes`: a function of its place alone.

        It does not depend on the sizes of the levels, so an anchor has the same one in a batch that is padded to more.
        """
        levels = []
        for level, (rows, columns) in enumerate(sizes):
            row, column, kind = (torch.arange(n, device=device) for n in (rows, columns, self.per_cell))
            place = (row[:, None] << _PLACE) + column
            levels.append((((level << 2 * _PLACE) + place[..., None]) * self.per_cell + kind).flatten())
        return levels

    def valid(self, sizes: Sequence[tuple[int, int]], image: tuple[int, int], device: torch.device) -> Tensor:
        """Return a bool for each anchor of all levels: whether its cell lies in the image of a batch padded to more.

        Args:
            sizes: (rows, columns) of the levels.
            image: the image's own (height, width), before padding; its padding to a multiple of 32 is valid.
            device: of the result.
        """
        height, width = padded_size(image)
        levels = []
        for (rows, columns), stride in zip(sizes, self.strides, strict=True):
            cells = torch.zeros((rows, columns), dtype=torch.bool)
            cells[: -(-height // stride), : -(-width // stride)] = True
            levels.append(cells.flatten().repeat_interleave(self.per_cell))
        return torch.cat(levels).to(device)
