"""Checks of what a detection network is given, and the scale between an image and its original."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["check_images", "check_truths", "image_scale"]


def check_images(images: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Check that each image's (height, width) lies in the batch.

    Raises:
        ValueError: it does not.
    """
    if len(sizes) != len(images):
        raise ValueError(f"there are {len(images)} images and {len(sizes)} sizes")
    rows, columns = images.shape[-2:]
    for image, (height, width) in enumerate(sizes):
        if not (0 < height <= rows and 0 < width <= columns):
            raise ValueError(f"image {image} has {height} x {width} pixels, the batch {rows} x {columns}")


def check_truths(
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
) -> None:
    """Check that each image has boxes `[G, 4]`, labels `[G]` and, if given, masks `[G, h, w]` within the batch.

    Raises:
        ValueError: they do not fit together.
    """
    check_images(images, sizes)
    if not len(boxes) == len(labels) == len(images):
        raise ValueError(f"there are {len(images)} images, boxes of {len(boxes)} and labels of {len(labels)}")
    if masks is not None and len(masks) != len(images):
        raise ValueError(f"there are {len(images)} images and masks of {len(masks)}")
    for image, (truths, classes) in enumerate(zip(boxes, labels, strict=True)):
        count = len(classes)
        if tuple(truths.shape) != (count, 4):
            raise ValueError(f"image {image} has {count} labels and boxes {tuple(truths.shape)}, needs [{count}, 4]")
        if masks is not None and (masks[image].dim() != 3 or len(masks[image]) != count):
            raise ValueError(f"image {image} has {count} labels and masks {tuple(masks[image].shape)}")


def image_scale(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Return by what boxes of an image of `size` are divided, per coordinate `[4]`, for an `original` (height, width).

    The two axes differ, because resizing rounds the sides of an image to whole pixels.
    """
    across, down = size[1] / original[1], size[0] / original[0]
    return boxes.new_tensor((across, down, across, down))
