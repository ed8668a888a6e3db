"""The model as MLflow serves it. This file is copied into the registered model and runs where that is loaded.

Of this project it needs `transxnet` and the decoder in `sharding`; both packages are copied beside it. It reads no
pickle: the weights are safetensors and the rest is JSON. Load it with
`mlflow.pyfunc.load_model("models:/transxnet_t@champion")`.

Input: one image or many, as a list, a Series, an array `[N, H, W, 3]`, a dict of one list, or a table of one column.
An image is the bytes of a JPEG, PNG, ... file, their base64 text (with line breaks, without padding, in the URL-safe
alphabet, as a `data:` URI), a path (not over HTTP), an image of Pillow, or pixels uint8 `[H, W, 3]` or, gray, `[H, W]`
or `[H, W, 1]`.
Output: a DataFrame with a row for each image: `class_name`, `wnid`, `probability` and `top5`, a list of the five best.

The images are decoded and prepared as in the evaluation that the registered accuracy was measured with: shorter side to
`image_size / evaluation_crop` by Pillow's bicubic filter, centre crop; the orientation in EXIF is ignored.
"""

import base64
import binascii
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image, UnidentifiedImageError

from sharding.decoding import FORMATS, decode

BATCH = 32
BEST = 5
SHOWN = 80
"""Characters of a text that a message shows: the text may be a whole image."""
_DATA_URI = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)


class RefusedInput(MlflowException, ValueError):
    """An input that cannot be classified. A server answers it with the status 400 and this message.

    The server puts the whole input, the image itself, before the message of an error, so this one never changes.
    """

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """What is wrong, in one sentence."""
        return self._sentence

    @message.setter
    def message(self, longer: str) -> None:
        """Keep the sentence."""


class ImageClassifier:
    """A TransXNet that classifies encoded images.

    Attributes:
        network: the `torch.nn.Module` in evaluation mode; it maps normalised images `[N, 3, S, S]` to logits.
        card: content of the model card (`model.json`).
    """

    network: torch.nn.Module
    card: dict[str, Any]

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the files that travel with the model."""
        from safetensors.torch import load_file

        import transxnet

        with open(context.artifacts["card"], encoding="utf-8") as file:
            self.card = json.load(file)
        self.network = transxnet.build(
            self.card["name"],
            num_classes=self.card["num_classes"],
            image_size=self.card["image_size"],
            drop_path_rate=0.0,
        )
        self.network.load_state_dict(transxnet.from_upstream(load_file(context.artifacts["weights"])))
        self.network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN001
        """Classify images; the docstring of this file describes input and output.

        Raises:
            RefusedInput: an input is no image; the message names its position.
        """
        return self.classify(as_list(model_input))

    def classify(self, images: list[Any]) -> pd.DataFrame:
        """Classify a plain list of images, which may be pixel arrays."""
        rows = []
        for start in range(0, len(images), BATCH):
            batch = [self._prepare(image, start + k) for k, image in enumerate(images[start : start + BATCH])]
            rows += [self._row(row) for row in self.probabilities(torch.stack(batch)).cpu()]
        return pd.DataFrame(rows, columns=["class_name", "wnid", "probability", "top5"])

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Return class probabilities, float32 `[N, num_classes]`, of normalised images `[N, 3, S, S]`."""
        device = next(self.network.parameters()).device
        return self.network(images.to(device)).float().softmax(1)

    def _row(self, probabilities: torch.Tensor) -> dict[str, Any]:
        values, indices = probabilities.topk(min(BEST, len(probabilities)))
        best = []
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            wnid, name = self.card["classes"][index]
            best.append({"class_name": name, "wnid": wnid, "probability": value})
        return {**best[0], "top5": best}

    def _prepare(self, source: Any, position: int) -> torch.Tensor:
        """Decode, resize, crop and normalise one image: float32 `[3, S, S]`."""
        image = open_input(source, position)
        size, settings = self.card["image_size"], self.card["preprocessing"]
        shorter = math.floor(size / settings["evaluation_crop"])
        width, height = image.size
        if width <= height:
            resized = (shorter, int(shorter * height / width))
        else:
            resized = (int(shorter * width / height), shorter)
        if resized != image.size:
            image = image.resize(resized, Image.Resampling[settings["interpolation"].upper()])
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        pixels = (pixels - np.float32(settings["mean"])) / np.float32(settings["std"])
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def as_list(images: Any) -> list[Any]:
    """Return the images of any accepted input as a list."""
    if isinstance(images, pd.DataFrame):
        if images.shape[1] != 1:
            raise RefusedInput(f"one column of images is expected, the table has {_names(images.columns)}")
        return images.iloc[:, 0].tolist()
    if isinstance(images, dict):
        if len(images) != 1:
            raise RefusedInput(f"one list of images is expected, the input has {_names(images)}")
        return as_list(next(iter(images.values())))
    if isinstance(images, np.ndarray):
        is_one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3))
        return [images] if is_one or images.ndim == 0 else list(images)
    return list(images) if isinstance(images, list | tuple | pd.Series) else [images]


def _names(names: Any) -> str:
    listed = [str(name)[:SHOWN] for name in names]
    return f"{len(listed)}: {', '.join(listed[:5])}" if listed else "none"


def open_input(source: Any, position: int) -> Image.Image:
    """Return the RGB image of the input at a position, as `open_image` does.

    Raises:
        RefusedInput: it is no image; the message names its position.
    """
    try:
        return open_image(source)
    except (ValueError, OSError) as error:
        raise RefusedInput(f"input {position} is not an image: {error}") from error


def open_image(source: Any) -> Image.Image:
    """Return the RGB image of bytes, base64 text, a path, an image of Pillow or pixels.

    Raises:
        ValueError: `source` is none of these, or cannot be decoded.
        OSError: the path cannot be read.
    """
    if isinstance(source, Image.Image):
        # The decoder makes transparency white, as it does in the evaluation.
        file = io.BytesIO()
        source.save(file, "PNG")
        return _decode(file.getvalue())
    if isinstance(source, np.ndarray):
        pixels = source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source
        is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        if pixels.dtype != np.uint8 or not is_image or not pixels.size:
            raise ValueError(f"pixels are {source.dtype} {source.shape}, uint8 [H, W, 3] or [H, W] was expected")
        return Image.fromarray(pixels).convert("RGB")
    if isinstance(source, os.PathLike):
        return _decode(_read(os.fspath(source)))
    if isinstance(source, str):
        content = _from_base64(source.encode(errors="replace"))
        return _decode(_read(source) if content is None else content)
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
        return _decode(_from_base64(content) or content)
    raise ValueError(
        f"{type(source).__name__} given; bytes, base64 text, a path, an image of Pillow or a uint8 array was expected"
    )


def _read(path: str) -> bytes:
    # A client of a prediction server must not be able to read the server's files.
    if os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "").lower() == "true":
        raise ValueError("text over HTTP must be the base64 of an image file")
    shown = repr(path if len(path) <= SHOWN else f"{path[:SHOWN]}...")
    try:
        if Path(path).is_file():
            return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{shown} is neither a path nor the base64 of an image ({error.strerror})") from error
    raise ValueError(f"there is no file {shown}, and it is not the base64 of an image")


def _from_base64(content: bytes) -> bytes | None:
    """Decode an image file in base64, in any form that tools write it; return None if `content` is something else."""
    if content[:1] in (b"\xff", b"\x89") or len(content) < 16:
        return None
    head = _DATA_URI.match(content)
    if head:
        content = unquote_to_bytes(content[head.end() :])
    content = b"".join(content.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        decoded = base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
        with Image.open(io.BytesIO(decoded), formats=FORMATS):
            return decoded
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _decode(content: bytes) -> Image.Image:
    return Image.fromarray(decode(content))


class ServedClassifier(ImageClassifier, PythonModel):
    """The class that MLflow loads.

    It inherits `predict`: of a method that the class itself defines MLflow demands type hints, which refuse arrays.
    """


set_model(ServedClassifier())
