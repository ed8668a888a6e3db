"""Crops per second and core of a segmentation's augmentation: `python -m tests.benchmarks.segmentation_loading`.

Three ways from the bytes of a JPEG and of its label map to a crop of 512 x 512 by the recipe (resize by a factor of 0.5
to 2, crop in which no class has more than three quarters, flip, photometric distortion, padding):

- a loader worker's: `pipeline.tasks.segmentation.augment.TrainCrops`;
- `torchvision.transforms.v2`, which has no limit on a class's share in a crop;
- mmsegmentation 0.30's transforms, rebuilt here call by call: OpenCV and numpy in fp32, as mmcv 1.7 does.

One process with one thread makes them in turns, so that other load affects all. Rates are per second of processor time.
A ratio is the median over the rounds of our rate to the other's in the same round. The images are scikit-learn's two
photographs, as large as ADE20K's (640 x 427), with label maps of 20 classes in blobs.
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.config.schema import AugmentConfig, SegmentationConfig
from pipeline.tasks.layout import Layout, Slot
from pipeline.tasks.segmentation.augment import TrainCrops

OPTIONS = SegmentationConfig()
SIDE, CLASSES, IGNORED = OPTIONS.crop_size, 20, 255
Sample = tuple[bytes, bytes]


def samples() -> list[Sample]:
    """Encoded images and label maps."""
    made = []
    for seed, photograph in enumerate(load_sample_images().images):
        for mirrored in (photograph, photograph[:, ::-1]):
            height, width = mirrored.shape[:2]
            coarse = np.random.default_rng(seed).integers(0, CLASSES, (height // 60, width // 60), dtype=np.uint8)
            labels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
            image, target = io.BytesIO(), io.BytesIO()
            Image.fromarray(np.ascontiguousarray(mirrored)).save(image, "JPEG", quality=95)
            Image.fromarray(labels).save(target, "PNG")
            made.append((image.getvalue(), target.getvalue()))
    return made


class Ours:
    """The augmentation of a loader worker."""

    def __init__(self) -> None:
        """Allocate memory for one crop."""
        spec: Any = SimpleNamespace(
            segmentation=OPTIONS, augment=AugmentConfig(horizontal_flip=0.5), seed=0, class_of=bytes(range(256))
        )
        self._crops = TrainCrops(spec)
        self._slot = Slot.allocate(1, Layout(pixels=(SIDE, SIDE, 3), labels=(SIDE, SIDE), dtype="uint8"))
        self._epoch = 0

    def __call__(self, sample: Sample) -> NDArray[np.uint8]:
        """Make a crop: uint8 [SIDE, SIDE, 3]."""
        self._epoch += 1
        [drawn] = self._crops.draw(np.array([self._epoch]), np.array([0]))
        self._crops.fill(*sample, drawn, self._slot, 0)
        return self._slot.pixels[0]


class Torchvision:
    """The recipe of `torchvision.transforms.v2`."""

    def __init__(self) -> None:
        """Build the transforms."""
        low, high = OPTIONS.scale_ratio
        short = min(OPTIONS.scale)
        self._transform = v2.Compose(
            [
                v2.RandomResize(int(short * low), int(short * high), antialias=True),
                v2.RandomCrop(SIDE, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomPhotometricDistort(
                    brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05), p=0.5
                ),
            ]
        )

    def __call__(self, sample: Sample) -> Any:
        """Make a crop: uint8 [3, SIDE, SIDE]."""
        image, target = (Image.open(io.BytesIO(content)) for content in sample)
        pixels = F.pil_to_tensor(image.convert("RGB"))
        labels = torch.from_numpy(np.array(target))
        return self._transform(tv_tensors.Image(pixels), tv_tensors.Mask(labels))[0]


class Mmsegmentation:
    """The transforms of mmsegmentation 0.30, from `LoadImageFromFile` to `Pad`."""

    def __call__(self, sample: Sample) -> NDArray[np.uint8]:
        """Make a crop: uint8 [SIDE, SIDE, 3], BGR."""
        image, labels = (np.frombuffer(content, np.uint8) for content in sample)
        pixels: Any = cv2.imdecode(image, cv2.IMREAD_COLOR)
        classes: Any = cv2.imdecode(labels, cv2.IMREAD_UNCHANGED)
        ratio = random.uniform(*OPTIONS.scale_ratio)
        longest, shortest = (int(side * ratio) for side in OPTIONS.scale)
        height, width = classes.shape
        factor = min(longest / max(height, width), shortest / min(height, width))
        to = int(width * factor + 0.5), int(height * factor + 0.5)
        pixels = cv2.resize(pixels, to, interpolation=cv2.INTER_LINEAR)
        classes = cv2.resize(classes, to, interpolation=cv2.INTER_NEAREST)
        for _ in range(11):
            top = random.randint(0, max(to[1] - SIDE, 0))
            left = random.randint(0, max(to[0] - SIDE, 0))
            part = classes[top : top + SIDE, left : left + SIDE]
            found, counts = np.unique(part, return_counts=True)
            counts = counts[found != IGNORED]
            if len(counts) > 1 and counts.max() / counts.sum() < OPTIONS.cat_max_ratio:
                break
        pixels, classes = pixels[top : top + SIDE, left : left + SIDE], part
        if random.random() < 0.5:
            pixels, classes = cv2.flip(pixels, 1), cv2.flip(classes, 1)
        pixels = self._distort(pixels)
        missing = max(SIDE - pixels.shape[0], 0), max(SIDE - pixels.shape[1], 0)
        cv2.copyMakeBorder(classes, 0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT, value=[IGNORED])
        return cv2.copyMakeBorder(pixels, 0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT, value=[0, 0, 0])

    def _distort(self, pixels: Any) -> Any:
        if random.randint(0, 1):
            pixels = self._convert(pixels, beta=random.uniform(-32, 32))
        first = random.randint(0, 1)
        if first and random.randint(0, 1):
            pixels = self._convert(pixels, alpha=random.uniform(0.5, 1.5))
        if random.randint(0, 1):
            hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
            hsv[..., 1] = self._convert(hsv[..., 1], alpha=random.uniform(0.5, 1.5))
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if random.randint(0, 1):
            hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(int) + random.randint(-18, 17)) % 180
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if not first and random.randint(0, 1):
            pixels = self._convert(pixels, alpha=random.uniform(0.5, 1.5))
        return pixels

    @staticmethod
    def _convert(pixels: Any, alpha: float = 1, beta: float = 0) -> Any:
        return np.clip(pixels.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def rate(make: Callable[[Sample], Any], given: list[Sample], crops: int) -> float:
    """Crops per second of processor time."""
    began = time.process_time()
    for number in range(crops):
        make(given[number % len(given)])
    return crops / (time.process_time() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--crops", type=int, default=40)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    given = samples()
    ways = {"ours": Ours(), "torchvision v2": Torchvision(), "mmsegmentation": Mmsegmentation()}
    for make in ways.values():
        rate(make, given, len(given))
    rounds = [
        {name: rate(make, given, arguments.crops) for name, make in ways.items()} for _ in range(arguments.rounds)
    ]
    for name in ways:
        ratio = statistics.median(found["ours"] / found[name] for found in rounds)
        print(f"{name:<16} {statistics.median(found[name] for found in rounds):7.1f} crops/s  ours is {ratio:.2f} x")


if __name__ == "__main__":
    main()
