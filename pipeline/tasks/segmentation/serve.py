"""A segmentation as MLflow serves it. This file is copied into the registered model and runs where that is loaded.

Of this project it needs `transxnet`, `sharding` and `serve.py` (which reads images), which are copied beside it. Input
as of a classifier (`serve.py`), in images of any size. Output: a DataFrame with a row for each image: `label_map`, a
gray PNG in base64 whose pixels are numbers of classes, in the size of the image; its `height` and `width`; and
`classes`, a list of the classes in it (`class_name`, `share` of the pixels), the largest first.

The images are prepared as in the evaluation that the registered mIoU was measured with: resized by OpenCV to fit into
`scale`, then stretched to multiples of `divisor`; the label map is that of logits resized to the size of the image.
"""

import base64
import io
import json
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image


class ImageSegmenter:
    """A Semantic FPN that labels the pixels of encoded images.

    Attributes:
        network: the `torch.nn.Module` in evaluation mode; it maps normalised images `[N, 3, H, W]` to logits of a
            quarter of the size.
        card: content of the model card (`model.json`).
    """

    network: torch.nn.Module
    card: dict[str, Any]

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the files that travel with the model."""
        from safetensors.torch import load_file

        from transxnet import dense

        with open(context.artifacts["card"], encoding="utf-8") as file:
            self.card = json.load(file)
        variant = self.card["name"].rpartition("_")[2]
        self.network = dense.semantic_fpn(
            variant, self.card["num_classes"], drop_path_rate=0.0, image_size=self.card["image_size"]
        )
        self.network.load_state_dict(dense.from_upstream(load_file(context.artifacts["weights"])))
        self.network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN001
        """Label the pixels of images; the docstring of this file describes input and output.

        Raises:
            RefusedInput: an input is no image; the message names its position.
        """
        from serve import as_list, open_input  # pyright: ignore[reportAttributeAccessIssue]

        rows = []
        for position, source in enumerate(as_list(model_input)):
            pixels = np.asarray(open_input(source, position))
            rows.append(self._row(self.label_map(pixels)))
        return pd.DataFrame(rows, columns=["label_map", "height", "width", "classes"])

    @torch.inference_mode()
    def label_map(self, pixels: np.ndarray) -> np.ndarray:
        """Return the class of each pixel, uint8 `[H, W]`, of an image uint8 `[H, W, 3]`, RGB."""
        from transxnet.dense import resize_logits

        device = next(self.network.parameters()).device
        images = self._prepare(pixels).to(device)
        logits = resize_logits(self.network(images).float(), tuple(images.shape[-2:]))
        return resize_logits(logits, pixels.shape[:2]).argmax(1)[0].to("cpu", torch.uint8).numpy()

    def _prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize and normalise an image: float32 `[1, 3, H, W]`."""
        settings = self.card["preprocessing"]
        longest, shortest, divisor = max(settings["scale"]), min(settings["scale"]), settings["divisor"]
        height, width = pixels.shape[:2]
        factor = min(longest / max(height, width), shortest / min(height, width))
        fitting = int(height * factor + 0.5), int(width * factor + 0.5)
        for rows, columns in (fitting, tuple(-(-side // divisor) * divisor for side in fitting)):
            if pixels.shape[:2] != (rows, columns):
                pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR)
        values = (pixels.astype(np.float32) / 255 - np.float32(settings["mean"])) / np.float32(settings["std"])
        return torch.from_numpy(values.transpose(2, 0, 1)[None].copy())

    def _row(self, labels: np.ndarray) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(labels).save(file, "PNG")
        classes, counts = np.unique(labels, return_counts=True)
        shares = [
            {"class_name": self.card["classes"][label][1], "share": float(count / labels.size)}
            for count, label in sorted(zip(counts.tolist(), classes.tolist(), strict=True), reverse=True)
        ]
        height, width = labels.shape
        encoded = base64.b64encode(file.getvalue()).decode()
        return {"label_map": encoded, "height": height, "width": width, "classes": shares}


class ServedSegmenter(ImageSegmenter, PythonModel):
    """The class that MLflow loads; it inherits `predict`, as `serve.ServedClassifier` does."""


set_model(ServedSegmenter())
