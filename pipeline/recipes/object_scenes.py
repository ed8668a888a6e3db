"""The demo of a detection: the digits in the scenes of the segmentation's demo as objects with boxes and masks."""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import (
    AugmentConfig,
    DataConfig,
    DetectionConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from pipeline.recipes import own_data, scenes
from pipeline.recipes.recipe import OwnData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER = "runs/objects"
"""Folder of the shards, relative to the current directory."""
NAME = "objects"
"""Prefix of the shards."""


def demo_detection() -> TrainConfig:
    """`python -m pipeline.launch --recipe demo_detection`: digits over photographs, mask_rcnn_n, two processes.

    From the champion of the classification demo it reaches a box AP50 of at least 0.8 on 120 held-out scenes.
    """
    return TrainConfig(
        task="detection",
        epochs=1.0,
        global_batch_size=16,
        precision="fp32",
        ema_decay=0.95,
        save_every_steps=100,
        eval_every_steps=120,
        log_every_steps=25,
        model=ModelConfig(name="mask_rcnn_n", image_size=scenes.SIDE, drop_path_rate=0.0),
        data=DataConfig(shards=FOLDER, workers=0, lanes=4),
        augment=AugmentConfig(horizontal_flip=0.0),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        detection=DetectionConfig(scale=(scenes.SIDE, scenes.SIDE), target_kb=64),
        optimizer=OptimizerConfig(lr=2e-3, layer_decay=0.8),
        schedule=ScheduleConfig(warmup_epochs=0.2, cooldown_epochs=0.2),
    )


def objects_of_scene(values: "NDArray[np.uint8]") -> list[dict[str, Any]]:
    """Return the digits of a scene as COCO annotations: one in each square that holds some.

    Args:
        values: uint8 [H, W], 0 for the background and 1 + d for the digit d (`scenes.draw_scene`).
    """
    import numpy as np

    height, width = values.shape
    found = []
    for top, left in itertools.product(range(0, height, scenes.CELL), range(0, width, scenes.CELL)):
        mask = np.zeros_like(values)
        cell = slice(top, top + scenes.CELL), slice(left, left + scenes.CELL)
        mask[cell] = values[cell] > 0
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
        # COCO's run lengths: down each column, beginning with the background.
        flat = mask.T.reshape(-1)
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *ends.tolist(), flat.size]).tolist()
        runs = [0, *runs] if flat[0] else runs
        found.append(
            {
                "category_id": int(values[cell].max()) - 1,
                "bbox": box,
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": runs},
            }
        )
    return found


def write_objects(folder: Path) -> None:
    """Write `images/SPLIT/NNNN.jpg` and `annotations/SPLIT.json` into a folder: the scenes, and their digits."""
    import numpy as np
    from PIL import Image

    scenes.write_scenes(folder)
    (folder / "annotations").mkdir()
    for split in scenes.SCENES:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, path in enumerate(sorted((folder / "masks" / split).iterdir())):
            values = np.asarray(Image.open(path))
            height, width = values.shape
            images.append({"id": number, "file_name": f"{path.stem}.jpg", "width": width, "height": height})
            for found in objects_of_scene(values):
                annotations.append({**found, "id": len(annotations), "image_id": number})
        categories = [{"id": digit, "name": f"digit {digit}"} for digit in range(10)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def are_packed(output: Path) -> bool:
    """Whether `output` holds the shards of both splits."""
    return own_data.are_packed(output, NAME)


def prepare_objects(output: Path) -> None:
    """Pack the scenes and their digits into the folder `output` unless it holds them.

    Raises:
        ConfigError: the folder holds something else, which would get a second data set beside it.
    """
    own_data.pack_once(output, NAME, "the objects of the scenes", write_objects, "coco-json")


OBJECTS_OF_SCENES = OwnData(
    description="scenes of handwritten digits with boxes and masks",
    folder=FOLDER,
    is_packed=are_packed,
    pack=prepare_objects,
)
"""Data of the demo unless other shards are named."""
