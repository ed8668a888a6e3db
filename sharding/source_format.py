"""The forms in which a source may be stored, by their names on the command line."""

from typing import Literal

SourceFormat = Literal[
    "ilsvrc",
    "kaggle",
    "tiny-imagenet",
    "parquet",
    "voc",
    "voc-xml",
    "ade20k",
    "cityscapes",
    "masks",
    "coco",
    "coco-json",
    "yolo",
    "folder",
]
