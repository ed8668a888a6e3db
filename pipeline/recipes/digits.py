"""The demo: a small training on the 1,797 handwritten digits of scikit-learn, and the packing of its shards."""

from pathlib import Path

from pipeline.config.schema import (
    AugmentConfig,
    DataConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from pipeline.recipes import own_data
from pipeline.recipes.recipe import OwnData

FOLDER = "runs/digits"
"""Folder of the shards, relative to the current directory."""


def demo() -> TrainConfig:
    """`python -m pipeline.launch --recipe demo`: handwritten digits, transxnet_n at 32 px, two processes on a CPU.

    Reaches a top-1 of at least 0.95 on 360 held-out digits, in under 3 minutes on 2 cores.
    """
    return TrainConfig(
        epochs=7,
        global_batch_size=64,
        precision="fp32",
        ema_decay=0.97,
        save_every_steps=50,
        eval_every_steps=100,
        log_every_steps=25,
        model=ModelConfig(name="transxnet_n", image_size=32),
        data=DataConfig(shards=FOLDER, workers=0, lanes=4),
        augment=AugmentConfig(
            crop_scale=(0.7, 1.0),
            horizontal_flip=0.0,
            interpolation="bilinear",
            rand_augment=None,
            random_erasing=0.0,
            evaluation_crop=1.0,
        ),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        optimizer=OptimizerConfig(lr=2e-3),
        schedule=ScheduleConfig(warmup_epochs=1.0, cooldown_epochs=1.0),
    )


SIDE = 32
"""Side of the images in pixels; the originals have 8."""
HELD_OUT_EVERY = 5
"""Every fifth digit belongs to the validation split."""
NAME = "digits"
"""Prefix of the shards."""


def write_class_folders(folder: Path) -> None:
    """Write `folder/{train,validation}/{0..9}/NNNN.jpg`: 1,437 and 360 grey images of 32 x 32 pixels."""
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
    """Whether `output` holds the shards of both splits."""
    return own_data.are_packed(output, NAME)


def prepare_digits(output: Path) -> None:
    """Pack the digits into the folder `output` unless it holds them.

    Raises:
        ConfigError: the folder holds something else, which would get a second data set beside it.
    """
    own_data.pack_once(output, NAME, "the digits", write_class_folders)


HANDWRITTEN_DIGITS = OwnData(
    description="the handwritten digits", folder=FOLDER, is_packed=are_packed, pack=prepare_digits
)
"""Data of the demo unless other shards are named."""
