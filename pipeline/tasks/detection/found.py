"""The share of an image's objects that are found: what an evaluation and the check before registering both measure."""

from collections.abc import Hashable, Sequence

OVERLAP = 0.5
"""Intersection over union from which on a box finds an object."""
Placed = tuple[Hashable, Sequence[float]]
"""A class, and a box x1, y1, x2, y2."""


def found_share(answers: Sequence[Placed], truths: Sequence[Placed]) -> float:
    """Return the share of true objects for which an answer of their class overlaps enough; 1 without objects."""
    if not truths:
        return 1.0
    hits = sum(any(kind == of and overlap(box, true) >= OVERLAP for kind, box in answers) for of, true in truths)
    return hits / len(truths)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / max(areas - common, 1e-9)


def corners_of(bbox: Sequence[float]) -> list[float]:
    """Return x1, y1, x2, y2 of a COCO `bbox` (x, y, width, height)."""
    x, y, width, height = bbox
    return [x, y, x + width, y + height]
