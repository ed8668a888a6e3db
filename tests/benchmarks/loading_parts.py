"""Where the time of one image goes, ours and timm's: `python -m tests.benchmarks.loading_parts`.

One process makes several passes over the same photographs, ours and timm's in turns. Of each image and part the
smallest processor time of all passes counts, so that other load on the machine matters little.

    python -m tests.benchmarks.loading_parts --images ../shared/imagenet-sample
"""

import argparse
import contextlib
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from pipeline.augment import transforms as augment
from pipeline.augment.decode import EncodedImage
from pipeline.augment.randaugment import RandAugment
from pipeline.augment.transforms import TrainAugment
from pipeline.data.index import cache_folder, open_index
from pipeline.data.reader import ReaderSpec, SampleReader
from pipeline.tasks.layout import Layout, Slot
from sharding import load_manifest
from sharding.build import BuildOptions, build
from tests.benchmarks.loading import RECIPE, timms_dataset, timms_loader

CHUNK = 8
PARTS = {
    "draws": (TrainAugment, "draw"),
    "read and check": (SampleReader, "_read"),
    "decode": (EncodedImage, "crop"),
    "resize": (augment, "resize"),
    "RandAugment": (RandAugment, "__call__"),
    "all": (SampleReader, "fill"),
}


@contextlib.contextmanager
def timed(spent: dict[str, list[float]]) -> Iterator[None]:
    """Record how long each call of each part takes."""
    with contextlib.ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            real = getattr(owner, name)
            setattr(owner, name, timing(real, spent.setdefault(part, [])))
            stack.callback(setattr, owner, name, real)
        yield


def timing(real: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """Wrap `real` to record the processor time of each call."""

    def wrapper(*args: Any, **named: Any) -> Any:
        started = time.process_time()
        result = real(*args, **named)
        times.append(time.process_time() - started)
        return result

    return wrapper


def main() -> None:
    """Measure, and print a line for each source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", default="../shared/imagenet-sample", help="folder of classes with photographs")
    parser.add_argument("--passes", type=int, default=9, help="repetitions, of which the smallest counts")
    parser.add_argument("--chunks", type=int, default=12, help=f"chunks of {CHUNK} images")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = options.chunks * CHUNK
    with tempfile.TemporaryDirectory() as scratch:
        readers, spent = {}, {}
        for name, side in (("original files", None), ("256 px shards", 256)):
            shards = f"{scratch}/{side}"
            build(BuildOptions(source=options.images, output=shards, split="train", shorter_side=side))
            folder = open_index(shards, load_manifest(shards, "train"), cache_folder(f"{scratch}/cache")).folder
            readers[name] = SampleReader(ReaderSpec(folder, shards, RECIPE, 224, 0, True, "stop"))
            spent[name] = {}
        dataset = timms_dataset(options.images)
        timms_loader(dataset, 0, use_prefetcher=True)
        slot = Slot.allocate(CHUNK, Layout(pixels=(224, 224, 3), labels=(), dtype="int64"))
        slot.epochs[:] = 0
        timm = []
        for _ in range(options.passes):
            for first in range(0, images, CHUNK):
                rows = np.arange(first, first + CHUNK) * (len(dataset) // images)
                slot.rows[:] = rows
                for name, reader in readers.items():
                    with timed(spent[name]):
                        reader.fill(slot)
                for row in rows.tolist():
                    random.seed(row), np.random.seed(row), torch.manual_seed(row)
                    started = time.process_time()
                    dataset[row]
                    timm.append(time.process_time() - started)
        timm_us = microseconds(timm, options.passes, images)
        print(f"timm's dataset: {timm_us:.0f} us")
        for name, times in spent.items():
            parts = {part: microseconds(values, options.passes, images) for part, values in times.items()}
            print(f"{name}: " + ", ".join(f"{part} {us:.0f} us" for part, us in parts.items()))
            print(f"{name}: {timm_us / parts['all']:.2f} x timm's, load {psutil.getloadavg()[0]:.1f}")


def microseconds(times: list[float], passes: int, images: int) -> float:
    """Microseconds for one image: the smallest time of all passes for each call, summed over the calls of a pass."""
    return 1e6 * float(np.reshape(times, (passes, -1)).min(axis=0).sum()) / images


if __name__ == "__main__":
    main()
