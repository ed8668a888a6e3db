"""A small data set with label maps, in the form `masks`."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sharding import Manifest
from sharding.build import BuildOptions, build
from tests.support.small_shards import photograph

NAMES = {0: "ground", 1: "thing", 5: "sky"}
IGNORED = 255
SPLITS = {"train": 13, "validation": 5}


def label_map(number: int, height: int, width: int) -> np.ndarray:
    """Blocks of 8 pixels of the three classes and of none: uint8 [height, width]."""
    generator = np.random.default_rng(number)
    blocks = generator.choice([*NAMES, IGNORED], (-(-height // 8), -(-width // 8)), p=[0.4, 0.3, 0.2, 0.1])
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


def write_masks(folder: Path, splits: dict[str, int] = SPLITS) -> Path:
    """Write `images/SPLIT/NNN.jpg`, `masks/SPLIT/NNN.png` and `classes.json`; return the folder."""
    number = 0
    for split, count in splits.items():
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for _ in range(count):
            path = folder / "images" / split / f"{number:03d}.jpg"
            path.write_bytes(photograph(number))
            width, height = Image.open(path).size
            Image.fromarray(label_map(number, height, width)).save(folder / "masks" / split / f"{number:03d}.png")
            number += 1
    (folder / "classes.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return folder


def pack_masks(folder: Path, **options: int) -> list[Manifest]:
    """Pack the data set into `folder / "shards"`."""
    source = write_masks(folder / "masks")
    return build(BuildOptions(source=str(source), output=str(folder / "shards"), name="small", workers=1, **options))
