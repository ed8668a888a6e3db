"""Writes the folder of a published model: weights, timm's configuration, the model card and the page."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pipeline.common.errors import InputError
from pipeline.look.gallery import Picture, draw_pictures, write_picture
from pipeline.look.images import NamedImage, choose_images
from pipeline.publish.page import write_page
from pipeline.run.config import read_config
from pipeline.tasks import DEFAULT
from pipeline.tracking.client import fetch_command
from pipeline.weights.card import WEIGHTS_NAME, ModelCard, save_model_card
from pipeline.weights.load import LoadedModel, load_model

CONFIG_NAME = "config.json"
PICTURES = "pictures"
"""Folder of the pictures on the page."""
SHOWN = 4
"""Images that are drawn."""
STEM, CLASSIFIER = "patch_embed.conv", "classifier.linear"


class PublishError(InputError):
    """A model that cannot be published, or a place where it cannot be."""


def publish(
    source: str,
    folder: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    images: Sequence[str] = (),
) -> Path:
    """Write a model into a new folder; timm reads it as `local-dir:FOLDER`, this project as a file of weights.

    The folder appears when it is complete.

    Args:
        source: a run directory, a `models:/` URI or a file of weights, as for `load_model`.
        folder: a folder that does not exist, or is empty.
        name: name of the model on its page, such as `USER/NAME`; by default the folder's.
        license: identifier of the weights' license for the page.
        images: what pictures on the page are drawn of (`pipeline.look.choose_images`); empty: no pictures.

    Returns:
        The folder.

    Raises:
        PublishError: the folder holds files, or the model is not a classifier.
        InputError: there is no such image.
        ModelCardError: `source` cannot be loaded.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PublishError(f"--to {folder} exists and is not empty: give a new folder")
    chosen = choose_images(images, SHOWN) if images else []
    model = load_model(source)
    if model.card.task != DEFAULT:
        raise PublishError(
            f"{source} is a {model.card.task}, and timm's layout holds classifiers: share its run directory's export/, "
            "whose weights transxnet.dense loads"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        _write(temporary, model, name or folder.resolve().name, source, license, chosen)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _write(
    folder: Path, model: LoadedModel, name: str, source: str, license: str | None, images: Sequence[NamedImage]
) -> None:
    state = {key: value.contiguous() for key, value in model.network.state_dict().items()}
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    content = json.dumps(timm_config(model.card), indent=1, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(content + "\n", encoding="utf-8")
    save_model_card(model.card, folder)
    pictures = _draw(folder / PICTURES, model, images) if images else []
    write_page(folder, model.card, name, _command(source, model.card), license, pictures)


def _command(source: str, card: ModelCard) -> str:
    """Return the command of the training; empty if neither a run directory nor the registry's server has it."""
    if Path(source).is_dir():
        return read_config(Path(source)).command
    if source.startswith("models:/") and card.mlflow_run_id is not None:
        return fetch_command(card.mlflow_run_id)
    return ""


def _draw(folder: Path, model: LoadedModel, images: Sequence[NamedImage]) -> list[Picture]:
    """Draw what the model sees into a new folder; return the pictures."""
    folder.mkdir()
    drawn = list(draw_pictures(model.network, model.card, images, (0.5, 0.5)))
    for picture in drawn:
        write_picture(folder / f"{picture.name}.png", picture)
    return drawn


def timm_config(card: ModelCard) -> dict[str, Any]:
    """Return timm's `config.json` for a classifier: architecture, preprocessing and classes."""
    import transxnet

    preparation, side = card.preprocessing, card.image_size
    labels = {}
    if all(wnid or name for wnid, name in card.classes):
        names = [wnid or name for wnid, name in card.classes]
        described = {wnid: name for wnid, name in card.classes if wnid and name}
        labels = {"label_names": names} | ({"label_descriptions": described} if described else {})
    return {
        "architecture": card.name,
        "num_classes": card.num_classes,
        "num_features": transxnet.VARIANTS[card.name].dims[-1],
        "global_pool": "avg",
        "model_args": {"img_size": side},
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "pool_size": [-(-side // 32)] * 2,
            "interpolation": preparation.interpolation,
            "crop_pct": preparation.evaluation_crop,
            "mean": list(preparation.mean),
            "std": list(preparation.std),
            "num_classes": card.num_classes,
            "first_conv": STEM,
            "classifier": CLASSIFIER,
        },
        **labels,
    }
