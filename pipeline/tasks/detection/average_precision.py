"""COCO's average precision of boxes and of masks, computed in one place from the detections of all images.

Source: Lin et al., "Microsoft COCO", arXiv 1405.0312, and the evaluation that its authors published (pycocotools),
whose figures `faster_coco_eval` gives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AveragePrecision", "Kind", "average_precision", "encode_mask"]

Kind = Literal["bbox", "segm"]
"""What is compared: boxes, or masks."""
_PRECISION = {"AP": (slice(None), 0), "AP50": (0, 0), "AP75": (5, 0), "APs": (slice(None), 1), "APm": (slice(None), 2)}
_PRECISION |= {"APl": (slice(None), 3)}
"""Name: (thresholds of overlap, class of areas)."""
_RECALL = {"AR1": (0, 0), "AR10": (0, 1), "AR100": (0, 2), "ARs": (1, 2), "ARm": (2, 2), "ARl": (3, 2)}
"""Name: (class of areas, place of the most detections an image among 1, 10, 100)."""


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's twelve figures, and the average precision of each category; NaN where there is nothing to find.

    Attributes:
        scores: `AP` (over overlaps .50 to .95), `AP50`, `AP75`, `APs`, `APm`, `APl` (objects below 32 x 32 pixels, up
            to 96 x 96, above), and the average recalls `AR1`, `AR10`, `AR100`, `ARs`, `ARm`, `ARl`.
        per_category: `AP` by category.
    """

    scores: dict[str, float]
    per_category: dict[int, float]


def average_precision(
    images: Mapping[int, tuple[int, int]],
    categories: Sequence[int],
    truths: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    kind: Kind,
) -> AveragePrecision:
    """Compare detections with truths over all images.

    The result does not depend on the order of images, so it is the same for any number of ranks that found them. Of
    detections with equal scores in one image the first comes first.

    Args:
        images: (height, width) by image id, of every image that was looked at, with objects or without.
        categories: ids of all categories.
        truths: COCO annotations: `image_id`, `category_id`, `bbox` (x, y, width, height), `area`, `iscrowd`, and for
            masks `segmentation` (polygons or RLE).
        detections: COCO results: `image_id`, `category_id`, `score`, and `bbox` or `segmentation` (RLE).
        kind: what to compare. Sizes of objects go by the area of the boxes or of the masks accordingly.
    """
    import numpy as np
    from faster_coco_eval import COCO, COCOeval_faster

    numbered = [{**truth, "id": number} for number, truth in enumerate(truths, start=1)]
    truth = COCO(
        {
            "info": {},
            "images": [{"id": key, "height": size[0], "width": size[1]} for key, size in sorted(images.items())],
            "categories": [{"id": category, "name": str(category)} for category in sorted(categories)],
            "annotations": sorted(numbered, key=lambda item: (item["image_id"], item["id"])),
        }
    )
    # A result with both would count by the area of its box.
    dropped = "bbox" if kind == "segm" else "segmentation"
    results = [{key: value for key, value in item.items() if key != dropped} for item in detections]
    results.sort(key=lambda item: item["image_id"])
    if not results:
        return _nothing_found(numbered, sorted(categories))
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType=kind)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])  # [overlaps, recalls, categories, areas, most detections]
    recall = np.asarray(evaluation.eval["recall"])  # [overlaps, categories, areas, most detections]
    scores = {name: _mean(precision[overlap, ..., area, -1]) for name, (overlap, area) in _PRECISION.items()}
    scores |= {name: _mean(recall[..., area, most]) for name, (area, most) in _RECALL.items()}
    each = {category: _mean(precision[:, :, k, 0, -1]) for k, category in enumerate(sorted(categories))}
    return AveragePrecision(scores, each)


def _mean(values: "np.ndarray") -> float:
    """Return the mean over the entries that exist; -1 stands for categories without objects."""
    found = values[values > -1]
    return float(found.mean()) if found.size else math.nan


def _nothing_found(truths: Sequence[Mapping[str, Any]], categories: Sequence[int]) -> AveragePrecision:
    """Return 0 for each figure with something to find: the evaluation itself does not take an empty list."""
    sizes = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, math.inf)}
    sought = [truth for truth in truths if not truth.get("iscrowd")]
    scores = {}
    for name in (*_PRECISION, *_RECALL):
        low, high = sizes.get(name[-1], (0, math.inf))
        scores[name] = 0.0 if any(low <= truth["area"] <= high for truth in sought) else math.nan
    present = {truth["category_id"] for truth in sought}
    return AveragePrecision(scores, {category: 0.0 if category in present else math.nan for category in categories})


def encode_mask(mask: "np.ndarray") -> dict[str, Any]:
    """Return a mask `[H, W]` (bool or uint8) as COCO's run lengths: `size` [H, W] and `counts`, a str."""
    import numpy as np
    from faster_coco_eval.core import mask as coding

    encoded = coding.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }
