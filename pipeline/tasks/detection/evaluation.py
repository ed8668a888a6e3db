"""Average precision, exactly: each image alone, its detections gathered once, and COCO's figures from all of them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.common.errors import InputError
from pipeline.config.schema import AugmentConfig
from pipeline.tasks.batch import Batch
from pipeline.tasks.detection.average_precision import AveragePrecision, average_precision, encode_mask
from pipeline.tasks.detection.device import PaddedImages
from pipeline.tasks.detection.found import corners_of, found_share
from pipeline.tasks.detection.geometry import corners
from pipeline.tasks.detection.picture import SHOWN, Shown, draw


class PrecisionEvaluator:
    """Evaluates a network on whole images (`pipeline.tasks.task.Evaluator`)."""

    is_gathered = True

    def __init__(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> None:
        """Begin with no image."""
        self._pad, self._num_classes, self._device = PaddedImages(augment), num_classes, device
        self._entries: list[dict[str, Any]] = []
        self._shown: list[Shown] = []
        self._last: tuple[list[Any], dict[str, AveragePrecision]] | None = None

    def add(self, network: nn.Module, batch: Batch) -> None:
        """Detect the objects of a batch, which holds one image."""
        assert batch.sizes is not None
        [(rows, columns, used, _)] = batch.sizes.tolist()
        content = json.loads(batch.labels[0, :used].numpy().tobytes())
        original = (content["height"], content["width"])
        images = self._pad(batch, self._device)
        detector: Any = network
        [found] = detector.detect(images, [(rows, columns)], [original])
        boxes = found.boxes.double().cpu()
        boxes[:, 2:] -= boxes[:, :2]
        results = [
            {"category_id": label, "score": score, "bbox": box}
            for label, score, box in zip(
                found.labels.tolist(), found.scores.double().tolist(), boxes.tolist(), strict=True
            )
        ]
        if found.masks is not None:
            for result, mask in zip(results, found.masks.cpu().numpy(), strict=True):
                result["segmentation"] = encode_mask(mask)
        row = int(batch.indices[0])
        self._entries.append(
            {
                "row": row,
                "size": original,
                "objects": content["objects"],
                "detections": results,
                "has_masks": found.masks is not None,
            }
        )
        if len(self._shown) < SHOWN:
            pixels = batch.images[0, : rows * columns * 3].view(rows, columns, 3).numpy().copy()
            masks = None if found.masks is None else found.masks.cpu().numpy()
            self._shown.append(Shown(pixels, original, content["objects"], results, masks))

    def sums(self) -> list[Any]:
        """Return an entry for each image of this rank: its objects and its detections."""
        return self._entries

    def scores(self, sums: list[Any]) -> dict[str, float]:
        """Return COCO's figures over the entries of all ranks: of boxes, and of masks if the network finds some.

        Raises:
            InputError: there is no image, or no object.
        """
        if not any(not found["iscrowd"] for entry in sums for found in entry["objects"]):
            raise InputError("nothing was evaluated: the validation split has no object")
        figures = self._figures(sums)
        values = {"box_ap": figures["bbox"].scores["AP"], "box_ap50": figures["bbox"].scores["AP50"]}
        values["box_ap75"] = figures["bbox"].scores["AP75"]
        masks = figures.get("segm")
        values |= {} if masks is None else {"mask_ap": masks.scores["AP"], "mask_ap50": masks.scores["AP50"]}
        return {**values, "box_found": math.fsum(map(_found, sums)) / len(sums)}

    def suspicion(self, sums: list[Any]) -> str | None:
        """Return nothing: a network that has just begun finds nothing."""
        return None

    def classes(self, sums: list[Any]) -> dict[str, list[float]]:
        """Return the average precision of each class."""
        names = {"bbox": "box AP", "segm": "mask AP"}
        return {
            names[kind]: [figure.per_category.get(label, math.nan) for label in range(self._num_classes)]
            for kind, figure in self._figures(sums).items()
        }

    def draw(self, folder: Path, names: list[str]) -> None:
        """Draw this rank's first images with true and found objects into `samples.png`."""
        draw(folder / "samples.png", self._shown, names)

    def _figures(self, entries: list[Any]) -> dict[str, AveragePrecision]:
        """Return COCO's figures by kind; scores and classes of the same entries share one computation."""
        if self._last is not None and self._last[0] is entries:
            return self._last[1]
        ordered = sorted(entries, key=lambda entry: entry["row"])
        images = {entry["row"]: tuple(entry["size"]) for entry in ordered}
        truths, detections = [], []
        for entry in ordered:
            for found in entry["objects"]:
                segmentation = found.get("segmentation") or [corners(found["bbox"])]
                truth = {**found, "segmentation": segmentation}
                truths.append({**truth, "image_id": entry["row"], "category_id": found["category"]})
            detections += [{**result, "image_id": entry["row"]} for result in entry["detections"]]
        categories = range(self._num_classes)
        figures = {"bbox": average_precision(images, categories, truths, detections, "bbox")}
        if any(entry["has_masks"] for entry in entries):
            figures["segm"] = average_precision(images, categories, truths, detections, "segm")
        self._last = (entries, figures)
        return figures


def _found(entry: dict[str, Any]) -> float:
    """Return the share of the objects of an entry that are found."""
    answers = [(result["category_id"], corners_of(result["bbox"])) for result in entry["detections"]]
    truths = [(found["category"], corners_of(found["bbox"])) for found in entry["objects"] if not found["iscrowd"]]
    return found_share(answers, truths)
