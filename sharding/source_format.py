"""The forms in which a source may be stored, by their names on the command line."""

from typing import Literal

SourceFormat = Literal[
    "ilsvrc",
    "kaggle",
    "tiny-imagenet",
    "parquet",
    "ade20k",
    "cityscapes",
    "voc",
    "masks",
    "coco",
    "coco-json",
    "folder",
]
