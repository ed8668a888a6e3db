"""The demo of a segmentation: scenes of handwritten digits over photographs, and the packing of their shards."""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import (
    AugmentConfig,
    DataConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SegmentationConfig,
    TrainConfig,
)
from pipeline.recipes import own_data
from pipeline.recipes.digits import HELD_OUT_EVERY
from pipeline.recipes.recipe import OwnData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 64
"""Side of the scenes in pixels."""
CELL = 32
"""Side of the squares of a scene, each of which holds at most one digit."""
SCENES = {"train": 1600, "validation": 120}
"""Number of scenes of each split; a digit is in the scenes of one split only."""
OCCUPIED = 0.9
"""Probability that a square holds a digit."""
DIGIT_SIDE = (28, 32)
"""Smallest and largest side of a digit in pixels; the originals have 8."""
DIMMED = 0.25
"""Factor of the photographs' brightness: pale digits stand out from a pale sky."""
INK = 0.25
"""Share of the darkest ink from which a pixel belongs to its digit."""
FOLDER = "runs/scenes"
"""Folder of the shards, relative to the current directory."""
NAME = "scenes"
"""Prefix of the shards."""


def demo_segmentation() -> TrainConfig:
    """`python -m pipeline.launch --recipe demo_segmentation`: digits over photographs, semantic_fpn_n, two processes.

    From the champion of the classification demo it reaches a mIoU of at least 0.7 on 120 held-out scenes.
    """
    return TrainConfig(
        task="segmentation",
        epochs=2.7,
        global_batch_size=16,
        precision="fp32",
        ema_decay=0.95,
        save_every_steps=100,
        eval_every_steps=150,
        log_every_steps=25,
        model=ModelConfig(name="semantic_fpn_n", image_size=SIDE, drop_path_rate=0.0),
        data=DataConfig(shards=FOLDER, workers=0, lanes=4),
        augment=AugmentConfig(horizontal_flip=0.0),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        segmentation=SegmentationConfig(
            crop_size=SIDE, scale=(SIDE, SIDE), scale_ratio=(1.0, 1.0), cat_max_ratio=1.0, photometric_distortion=False
        ),
        optimizer=OptimizerConfig(lr=4e-3, layer_decay=0.6),
        schedule=ScheduleConfig(warmup_epochs=0.2, cooldown_epochs=0.3),
    )


def draw_scene(
    photographs: "list[NDArray[np.uint8]]", digits: "NDArray[np.float32]", labels: "NDArray[np.int64]", number: int
) -> "tuple[NDArray[np.uint8], NDArray[np.uint8]]":
    """Paste digits at random sizes, places and colours over a crop of a photograph, at most one in each square.

    Args:
        photographs: uint8 [H, W, 3] each.
        digits: float32 [N, 8, 8], ink of the digits from 0 to 1.
        labels: int64 [N], the digit that each shows.
        number: of the scene, from which everything is drawn.

    Returns:
        Pixels uint8 [SIDE, SIDE, 3], and values uint8 [SIDE, SIDE]: 0 is the background, 1 + d the digit d.
    """
    import cv2
    import numpy as np

    from pipeline.order import draws

    uniform = iter(draws.uniforms(draws.key(number, draws.Purpose.SEGMENT), 64).tolist())

    def integer(low: int, high: int) -> int:
        return low + int(next(uniform) * (high - low))

    photograph = photographs[integer(0, len(photographs))]
    top, left = (integer(0, length - 2 * SIDE) for length in photograph.shape[:2])
    pixels: Any = cv2.resize(
        photograph[top : top + 2 * SIDE, left : left + 2 * SIDE], (SIDE, SIDE), interpolation=cv2.INTER_AREA
    )
    pixels = cv2.convertScaleAbs(pixels, alpha=DIMMED)
    values = np.zeros((SIDE, SIDE), np.uint8)
    for top, left in itertools.product(range(0, SIDE, CELL), repeat=2):
        if next(uniform) >= OCCUPIED:
            continue
        which, side = integer(0, len(digits)), integer(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1)
        y, x = (corner + integer(0, CELL - side + 1) for corner in (top, left))
        colour = np.array([integer(190, 256) for _ in range(3)], np.float32)
        ink: Any = cv2.resize(digits[which], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        part = pixels[y : y + side, x : x + side]
        part[:] = (part * (1 - ink[..., None]) + colour * ink[..., None]).round().astype(np.uint8)
        values[y : y + side, x : x + side][ink >= INK] = 1 + int(labels[which])
    return pixels, values


def write_scenes(folder: Path) -> None:
    """Write `images/SPLIT/NNNN.jpg`, `masks/SPLIT/NNNN.png` and `classes.json` into a folder."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_images

    photographs = [np.asarray(image) for image in load_sample_images().images]
    ink, labels = load_digits(return_X_y=True)
    digits, labels = (np.asarray(ink).reshape(-1, 8, 8) / 16).astype(np.float32), np.asarray(labels, np.int64)
    is_held_out = np.arange(len(labels)) % HELD_OUT_EVERY == 0
    first = 0
    for split, count in SCENES.items():
        chosen = is_held_out if split == "validation" else ~is_held_out
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels, values = draw_scene(photographs, digits[chosen], labels[chosen], first + number)
            Image.fromarray(pixels).save(folder / "images" / split / f"{number:04d}.jpg", quality=95)
            Image.fromarray(values).save(folder / "masks" / split / f"{number:04d}.png")
        first += count
    names = {0: "background", **{1 + digit: f"digit {digit}" for digit in range(10)}}
    (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")


def are_packed(output: Path) -> bool:
    """Whether `output` holds the shards of both splits."""
    return own_data.are_packed(output, NAME)


def prepare_scenes(output: Path) -> None:
    """Pack the scenes into the folder `output` unless it holds them.

    Raises:
        ConfigError: the folder holds something else, which would get a second data set beside it.
    """
    own_data.pack_once(output, NAME, "the scenes", write_scenes, "masks")


SCENES_OF_DIGITS = OwnData(
    description="scenes of handwritten digits", folder=FOLDER, is_packed=are_packed, pack=prepare_scenes
)
"""Data of the demo unless other shards are named."""
