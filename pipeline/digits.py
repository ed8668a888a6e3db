"""The demo's data: the 1,797 handwritten digits that scikit-learn ships, as JPEGs in class folders, then as shards."""

import shutil
import tempfile
from pathlib import Path

SIDE = 32
"""Side of the images in pixels; the originals have 8."""
HELD_OUT_EVERY = 5
"""Each fifth digit is for validation."""
NAME = "digits"
"""Prefix of the shards."""


def write_class_folders(folder: Path) -> None:
    """Write `folder/{train,validation}/{0..9}/NNNN.jpg`: 1,437 and 360 grey images."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        split = "validation" if number % HELD_OUT_EVERY == 0 else "train"
        path = folder / split / str(label) / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.asarray(image.reshape(8, 8) * (255 / 16), np.uint8)
        Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=95)


def are_packed(output: Path) -> bool:
    """Whether the shards of both splits are in `output`."""
    return all((output / f"{NAME}-{split}.json").exists() for split in ("train", "validation"))


def prepare_digits(output: Path) -> None:
    """Pack the digits into `output`, unless they are there already."""
    from sharding.build import BuildOptions, build

    if are_packed(output):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    folders = Path(tempfile.mkdtemp(dir=output.parent, prefix=".digits-"))
    try:
        write_class_folders(folders)
        build(BuildOptions(source=str(folders), output=str(output), name=NAME, workers=1))
    finally:
        shutil.rmtree(folders, ignore_errors=True)
