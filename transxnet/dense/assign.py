"""Assignment of truths to boxes (anchors, proposals), and the choice of those that a loss counts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from transxnet.dense.boxes import box_iou

__all__ = ["IGNORED", "NEGATIVE", "Choose", "Sampled", "Thresholds", "assign", "keyed_choice", "mix", "sample"]

NEGATIVE, IGNORED = -1, -2
CHUNK = 128
"""Truths whose overlaps are computed at a time, so that an image with a thousand objects fits the memory."""
Choose = Callable[[Tensor, int, int], Tensor]
"""A choice among candidates by a key: `choose(names, number, key)` returns `number` places in `names` `[K]`."""
_WORD = 0xFFFFFFFF


class Thresholds(NamedTuple):
    """Overlaps (intersection over union) that decide an assignment."""

    positive: float
    """From this on a box belongs to the truth that it overlaps most."""
    negative: float
    """Below this a box belongs to no truth; between the two it is ignored."""
    lowest: float
    """A truth also takes every box that it overlaps most of all boxes, if by at least this."""


def assign(boxes: Tensor, truths: Tensor, thresholds: Thresholds) -> Tensor:
    """Return the index of the truth of each box, `[K]` int64: `NEGATIVE` for none, `IGNORED` for an undecided box.

    A truth takes each box whose overlap equals its best one, exactly, even where another truth fits that box better; of
    several truths the last one takes it. A truth that overlaps no box at all takes none.

    Args:
        boxes: `[K, 4]`.
        truths: `[G, 4]`.
        thresholds: the overlaps that decide.

    Source: Ren et al., arXiv 1506.01497, section 3.1.2, as upstream's `MaxIoUAssigner`.
    """
    best = boxes.new_zeros(len(boxes))
    index = torch.full((len(boxes),), NEGATIVE, dtype=torch.int64, device=boxes.device)
    taken = index.clone()
    for start in range(0, len(truths), CHUNK):
        overlaps = box_iou(truths[start : start + CHUNK], boxes)
        value, at = overlaps.max(dim=0)
        better = value > best
        best, index = torch.where(better, value, best), torch.where(better, at + start, index)
        own_best = overlaps.max(dim=1, keepdim=True).values if len(boxes) else overlaps
        takes = (overlaps == own_best) & (own_best >= thresholds.lowest) & (own_best > 0)
        number = torch.arange(start, start + len(overlaps), device=boxes.device)[:, None]
        taken = torch.maximum(taken, torch.where(takes, number, NEGATIVE).amax(dim=0))
    assigned = torch.where(best < thresholds.negative, NEGATIVE, IGNORED)
    assigned = torch.where(best >= thresholds.positive, index, assigned)
    return torch.where(taken >= 0, taken, assigned)


class Sampled(NamedTuple):
    """Indices of the boxes that a loss counts, each ascending."""

    positive: Tensor
    negative: Tensor


def sample(
    assigned: Tensor, number: int, most_positive: int, choose: Choose, draw: int, names: Tensor | None = None
) -> Sampled:
    """Return at most `number` boxes, of which at most `most_positive` are positive; negative ones fill up.

    Args:
        assigned: the result of `assign`.
        number: of boxes, positive and negative.
        most_positive: the most positive ones.
        choose: how to choose where there are more candidates than needed.
        draw: the key of this image's choices.
        names: `[K]` int64, by which boxes are chosen; None: their indices.
    """
    names = torch.arange(len(assigned), device=assigned.device) if names is None else names
    positive = _choose((assigned >= 0).nonzero().flatten(), names, most_positive, choose, mix(draw, 1))
    negative = (assigned == NEGATIVE).nonzero().flatten()
    return Sampled(positive, _choose(negative, names, number - len(positive), choose, mix(draw, 2)))


def _choose(candidates: Tensor, names: Tensor, number: int, choose: Choose, key: int) -> Tensor:
    if len(candidates) <= number:
        return candidates
    return candidates[choose(names[candidates], number, key)].sort().values


def keyed_choice(names: Tensor, number: int, key: int) -> Tensor:
    """Return the places of `number` candidates, a random choice that is a function of their names and `key` alone.

    Each name, of `[K]` int64, is hashed with the key, and those with the smallest hashes are chosen: no generator's
    state, and the same choice on every device. Whether a candidate is chosen depends on the others only by whether
    enough of them have smaller hashes, so a candidate more or less changes one choice.
    """
    hashed = _scramble(_scramble(names & _WORD ^ (key & _WORD)) ^ (key >> 32 & _WORD))
    return hashed.sort(stable=True).indices[:number]


def _scramble(x: Tensor) -> Tensor:
    """Mix the bits of 32-bit values held in int64 (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _WORD
    return x ^ (x >> 16)


def mix(key: int, purpose: int) -> int:
    """Return a 64-bit key for one `purpose` of a `key` (a step of SplitMix64)."""
    mask = 0xFFFFFFFFFFFFFFFF
    x = key + purpose * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31
