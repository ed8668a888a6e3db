"""Images per second and core of a detection's augmentation: `python -m tests.benchmarks.detection_loading`.

A loader worker's way from the bytes of a JPEG and of its objects to what a step reads: resized into 1333 x 800, flipped
or not, with boxes and, for Mask R-CNN, masks. The images are scikit-learn's two photographs, as large as COCO's (640 x
427), each with seven objects, COCO's mean, outlined by polygons of 20 corners. One process with one thread; rates are
per second of processor time.
"""

import argparse
import io
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.config.schema import AugmentConfig, DetectionConfig
from pipeline.tasks.detection.augment import TrainImages

OPTIONS = DetectionConfig()
OBJECTS, CORNERS = 7, 20
NETWORKS = ("retinanet_t", "mask_rcnn_t")
Sample = tuple[bytes, bytes]


def samples() -> list[Sample]:
    """Encoded images, and their objects as JSON."""
    made = []
    for seed, photograph in enumerate(load_sample_images().images):
        height, width = photograph.shape[:2]
        image = io.BytesIO()
        Image.fromarray(photograph).save(image, "JPEG", quality=95)
        random = np.random.default_rng(seed)
        objects = []
        for _ in range(OBJECTS):
            side = random.uniform(30, 200)
            left, top = random.uniform(0, width - side), random.uniform(0, height - side)
            angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
            outline = np.stack([left + side / 2 * (1 + np.cos(angles)), top + side / 2 * (1 + np.sin(angles))], axis=1)
            box = {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
            objects.append({"category": 1, "segmentation": [outline.ravel().tolist()], **box})
        made.append((image.getvalue(), json.dumps({"objects": objects}).encode()))
    return made


def rate(network: str, given: list[Sample], images: int) -> float:
    """Images per second of processor time."""
    spec: Any = SimpleNamespace(detection=OPTIONS, augment=AugmentConfig(horizontal_flip=0.5), seed=0, model=network)
    augment = TrainImages(spec)
    room = max(OPTIONS.scale) * min(OPTIONS.scale) * 3
    slot: Any = SimpleNamespace(
        pixels=np.zeros((1, room), np.uint8),
        labels=np.zeros((1, OPTIONS.target_kb * 1024), np.uint8),
        sizes=np.zeros((1, 4), np.int64),
    )
    began = time.process_time()
    for number in range(images):
        [drawn] = augment.draw(np.array([number]), np.array([0]))
        augment.fill(*given[number % len(given)], drawn, slot, 0)
    return images / (time.process_time() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=40)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    given = samples()
    for network in NETWORKS:
        rate(network, given, len(given))
    rounds = [{name: rate(name, given, arguments.images) for name in NETWORKS} for _ in range(arguments.rounds)]
    size = sum(len(image) for image, _ in given) / len(given) / 1e3
    for name in NETWORKS:
        found = statistics.median(done[name] for done in rounds)
        print(f"{name:<16} {found:7.1f} images/s a core, JPEGs of {size:.0f} KB")


if __name__ == "__main__":
    main()
