"""The command `python -m pipeline.look MODEL --images …`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.cli import print_error
from pipeline.common.errors import InputError

if TYPE_CHECKING:
    from pipeline.weights.load import LoadedModel


def main(
    model: str,
    /,
    *,
    images: tuple[str, ...],
    to: Path = Path("look"),
    count: int = 6,
    position: tuple[float, float] = (0.5, 0.5),
    entry: str | None = None,
    log_to_mlflow: bool = False,
) -> int:
    """Draw what a model sees: Grad-CAM, receptive fields, IDConv's kernels, attention, or what it finds.

    Args:
        model: A run directory, a models:/ URI, or a file of weights (.safetensors, .pth, .pt, .bin, .ckpt).
        images: Image files, folders with images, or shards (.tar).
        to: New folder for the pictures and the page index.html.
        count: Number of images that are drawn, spread over those that there are.
        position: Position whose attention is drawn: x and y from the top left, as shares of the image.
        entry: Entry of the file to take, such as state_dict; by default averaged weights if there are some.
        log_to_mlflow: Add the pictures to the MLflow run that the model came from.
    """
    # A shell leaves `~` in `--to=~/look`.
    folder = Path(os.path.expanduser(to))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"--to {to} exists and is not empty: give a new folder")
    if not all(0 <= share <= 1 for share in position):
        raise InputError(f"--position {position[0]:g} {position[1]:g}: give two shares from 0 to 1, such as 0.5 0.5")
    from pipeline.look.images import choose_images

    chosen = choose_images(images, count)
    from pipeline.look.gallery import draw_pictures, write_gallery
    from pipeline.weights.load import load_model

    loaded = load_model(model, entry)
    if log_to_mlflow and loaded.card.mlflow_run_id is None:
        raise InputError(f"--log-to-mlflow: {model} names no MLflow run that it came from: leave it out")
    pictures = []
    for picture in draw_pictures(loaded.network, loaded.card, chosen, position):
        print(f"drawn: {picture.title}", flush=True)
        pictures.append(picture)
    page = write_gallery(folder, loaded.card, model, pictures)
    print(f"{len(pictures)} pictures of {len(chosen)} images: open {page}")
    return _log(loaded, folder) if log_to_mlflow else 0


def _log(model: "LoadedModel", folder: Path) -> int:
    """Log the folder in MLflow, and print where or why not; return the exit status."""
    from pipeline.look.log import log_pictures
    from pipeline.tracking.client import describe_failure

    try:
        print(f"MLflow: {log_pictures(model, folder)}")
    except Exception as error:  # any error of MLflow or of its HTTP client
        refusal = f"MLflow at {model.tracking_uri} does not take it"
        print_error(f"the pictures are not added to MLflow: {describe_failure(error, refusal)}")
        return 1
    return 0
