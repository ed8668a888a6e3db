"""A batch of two images of different sizes with a few objects, for the detection networks."""

import torch
from torch import Tensor

from tests.transxnet.fixtures import images

SIZES = [(64, 96), (50, 61)]
BOXES = [
    torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 93.0, 60.0], [70.0, 40.0, 71.0, 41.0]]),
    torch.tensor([[0.0, 0.0, 61.0, 50.0], [20.0, 22.0, 44.0, 40.0]]),
]
LABELS = [torch.tensor([0, 2, 1]), torch.tensor([1, 0])]
NONE = ([torch.empty((0, 4))] * 2, [torch.empty(0, dtype=torch.int64)] * 2)
"""Boxes and labels of images without objects."""


def batch() -> Tensor:
    """The images `[2, 3, 64, 96]`, zero beyond each one's size."""
    x = images(2, 64, 96)
    for image, (height, width) in enumerate(SIZES):
        x[image, :, height:] = 0
        x[image, :, :, width:] = 0
    return x


def masks(boxes: list[Tensor]) -> list[Tensor]:
    """Each box as a mask `[64, 96]` uint8, without the lower right quarter."""
    found = []
    for of_image in boxes:
        shapes = torch.zeros((len(of_image), 64, 96), dtype=torch.uint8)
        for shape, (left, top, right, bottom) in zip(shapes, of_image.int().tolist(), strict=True):
            shape[top:bottom, left:right] = 1
            shape[(top + bottom) // 2 : bottom, (left + right) // 2 : right] = 0
        found.append(shapes)
    return found
