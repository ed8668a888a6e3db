"""A detector as MLflow serves it. This file is copied into the registered model and runs where that is loaded.

Of this project it needs `transxnet`, `sharding` and `serve.py` (which reads images), which are copied beside it. Input
as of a classifier (`serve.py`), in images of any size. Output: a DataFrame with a row for each image: `detections`, a
list of at most 100 objects, the best first, and `height` and `width` of the image. An object has `box`, the numbers x1,
y1, x2, y2 in pixels of the image; `score`; `class_name`; and, where the network finds masks, `mask`: COCO's run lengths
with `size` (height, width) and `counts`, which pycocotools and faster-coco-eval decode.

The images are prepared as in the evaluation that the registered AP was measured with: resized by OpenCV to fit into
`scale`, normalised, and padded with zeros to multiples of 32.
"""

import json
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

DIVISOR = 32


class ObjectDetector:
    """A RetinaNet or Mask R-CNN that finds the objects in encoded images.

    Attributes:
        network: the network in evaluation mode.
        card: content of the model card (`model.json`).
    """

    network: Any
    card: dict[str, Any]

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the files that travel with the model."""
        from safetensors.torch import load_file

        from transxnet import dense

        with open(context.artifacts["card"], encoding="utf-8") as file:
            self.card = json.load(file)
        kind, _, variant = self.card["name"].rpartition("_")
        build = {"mask_rcnn": dense.mask_rcnn, "retinanet": dense.retinanet}[kind]
        self.network = build(variant, self.card["num_classes"], drop_path_rate=0.0, image_size=self.card["image_size"])
        self.network.load_state_dict(dense.from_upstream(load_file(context.artifacts["weights"])))
        self.network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN001
        """Find the objects in images; the docstring of this file describes input and output.

        Raises:
            RefusedInput: an input is no image; the message names its position.
        """
        from serve import as_list, open_input  # pyright: ignore[reportAttributeAccessIssue]

        rows = []
        for position, source in enumerate(as_list(model_input)):
            pixels = np.asarray(open_input(source, position))
            height, width = pixels.shape[:2]
            rows.append({"detections": self.detect(pixels), "height": height, "width": width})
        return pd.DataFrame(rows, columns=["detections", "height", "width"])

    @torch.inference_mode()
    def detect(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Return the objects in an image uint8 `[H, W, 3]`, RGB, the best first."""
        images, size = self._prepare(pixels)
        [found] = self.network.detect(images.to(next(self.network.parameters()).device), [size], [pixels.shape[:2]])
        columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
        objects: list[dict[str, Any]] = [
            {"box": [round(side, 2) for side in box], "score": score, "class_name": self.card["classes"][label][1]}
            for box, score, label in zip(*columns, strict=True)
        ]
        if found.masks is not None:
            for entry, mask in zip(objects, found.masks.cpu().numpy(), strict=True):
                entry["mask"] = _encode(mask)
        return objects

    def _prepare(self, pixels: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """Resize, normalise and pad an image: float32 `[1, 3, H, W]`, and its (height, width) within."""
        settings = self.card["preprocessing"]
        height, width = pixels.shape[:2]
        longest, shortest = max(settings["scale"]), min(settings["scale"])
        factor = min(longest / max(height, width), shortest / min(height, width))
        rows, columns = int(height * factor + 0.5), int(width * factor + 0.5)
        if (rows, columns) != (height, width):
            pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
        values = (pixels.astype(np.float32) / 255 - np.float32(settings["mean"])) / np.float32(settings["std"])
        padded = np.zeros((-(-rows // DIVISOR) * DIVISOR, -(-columns // DIVISOR) * DIVISOR, 3), np.float32)
        padded[:rows, :columns] = values
        return torch.from_numpy(padded.transpose(2, 0, 1)[None].copy()), (rows, columns)


def _encode(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask `[H, W]` as COCO's run lengths: `size` and `counts`, a text."""
    from faster_coco_eval.core import mask as coding

    encoded = coding.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    text = counts if isinstance(counts, str) else counts.decode()
    return {"size": [int(side) for side in encoded["size"]], "counts": text}


class ServedDetector(ObjectDetector, PythonModel):
    """The class that MLflow loads; it inherits `predict`, as `serve.ServedClassifier` does."""


set_model(ServedDetector())
