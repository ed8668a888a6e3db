"""Images per second and core of the training loader against timm's: `python -m tests.benchmarks.loading`.

Both read the same photographs with the full recipe (crop, flip, RandAugment, erasing, 224 px) in `--workers` processes,
in turns within one run, so that what else the machine does falls on both. Rates are over the processor time that the
workers and the main process took, which is what a core can do, and over the clock.

    python -m tests.benchmarks.loading --images ../shared/imagenet-sample
"""

import argparse
import contextlib
import glob
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch

from pipeline.augment import TrainAugment
from pipeline.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from pipeline.data import build_train_loader
from pipeline.data_index import SampleIndex
from sharding.build import BuildOptions, build

BATCH, AHEAD = 64, 8
RECIPE = AugmentConfig()


class Rate:
    """Runs of one loader: each a stretch of batches, measured in processor time and by the clock."""

    def __init__(self, name: str, batches: Iterator[int]) -> None:
        """Start the loader and read its first batches."""
        before = set(psutil.Process().children())
        self.name, self._batches = name, batches
        next(batches)
        self._processes = [psutil.Process(), *(set(psutil.Process().children()) - before)]
        self.per_core: list[float] = []
        self.per_second: list[float] = []

    def stretch(self, count: int) -> None:
        """Read `count` batches."""
        began, started = self._processor_seconds(), time.perf_counter()
        images = sum(next(self._batches) for _ in range(count))
        self.per_second.append(images / (time.perf_counter() - started))
        self.per_core.append(images / (self._processor_seconds() - began))

    def _processor_seconds(self) -> float:
        """Processor time of this process and of the loader's own."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


def ours(shards: str, workers: int, cache: str) -> Iterator[int]:
    """Our loader, as the training opens it."""
    config = TrainConfig(
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        model=ModelConfig(image_size=224),
        data=DataConfig(shards=shards, workers=workers, cache_dir=cache, prefetch_batches=AHEAD),
        augment=RECIPE,
    )
    with build_train_loader(config, world_size=1, rank=0, start_step=0, total_steps=10**6, device="cpu") as loader:
        for batches in loader:
            for batch in batches:
                yield len(batch.images)


def repeated(images: str, scratch: str) -> str:
    """A folder with each photograph many times, so that timm's loader seldom comes to the end of an epoch."""
    folder = Path(scratch) / "repeated"
    for file in () if folder.exists() else sorted(Path(images).glob("*/*")):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(16):
            (folder / file.parent.name / f"{file.stem}_{number}{file.suffix}").symlink_to(file.resolve())
    return str(folder)


def timms(images: str, workers: int, use_prefetcher: bool) -> Iterator[int]:
    """timm's loader over the files of a folder of classes."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=images, split="train")
    while True:
        loader = create_loader(
            dataset,
            input_size=(3, 224, 224),
            batch_size=BATCH,
            is_training=True,
            use_prefetcher=use_prefetcher,
            re_prob=RECIPE.random_erasing,
            re_mode="pixel",
            hflip=RECIPE.horizontal_flip,
            color_jitter=0.4,
            auto_augment=RECIPE.rand_augment,
            interpolation="random",
            num_workers=workers,
            persistent_workers=True,
            pin_memory=False,
            device=torch.device("cpu"),
        )
        loader = loader.loader if use_prefetcher else loader  # its prefetcher needs a GPU; the workers do the same
        while True:
            for batch in loader:
                yield len(batch[0])


def breakdown(shards: str, cache: str) -> dict[str, float]:
    """Median microseconds that each part of one image takes, in this process."""
    from pipeline import augment as module
    from pipeline.data_reader import ReaderSpec, SampleReader
    from pipeline.decode import EncodedImage
    from pipeline.randaugment import RandAugment

    spent: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def timed(owner: object, name: str, part: str) -> Iterator[None]:
        real = getattr(owner, name)

        def wrapper(*args: object, **keywords: object) -> object:
            started = time.process_time()
            result = real(*args, **keywords)
            spent.setdefault(part, []).append(time.process_time() - started)
            return result

        setattr(owner, name, wrapper)
        yield
        setattr(owner, name, real)

    folder = str(next(Path(cache).glob("index-*")))
    spec = ReaderSpec(folder, shards, RECIPE, 224, 0, True, "stop")
    reader, index = SampleReader(spec), SampleIndex.map(folder)
    pixels, labels = np.empty((16, 224, 224, 3), np.uint8), np.empty(16, np.int64)
    cv2.setNumThreads(1)
    parts = (
        (SampleReader, "_read", "read and check"),
        (EncodedImage, "crop", "decode"),
        (module, "resize", "resize"),
        (RandAugment, "__call__", "RandAugment"),
        (TrainAugment, "draw", "draws (of 16)"),
        (SampleReader, "fill", "all (of 16)"),
    )
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(timed(*part))
        for first in range(0, 30 * 16, 16):
            rows = np.arange(first, first + 16) % len(index.rows)
            reader.fill(rows, np.zeros_like(rows), pixels, labels)
    reader.close()
    means = {part: 1e6 * statistics.fmean(values) for part, values in spent.items()}
    return {part.removesuffix(" (of 16)"): us / (16 if "of 16" in part else 1) for part, us in means.items()}


def main() -> None:
    """Measure, and print a line for each loader and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", default="../shared/imagenet-sample", help="folder of classes with photographs")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, as many as there are cores")
    parser.add_argument("--rounds", type=int, default=5, help="stretches of each loader, in turns")
    parser.add_argument("--batches", type=int, default=6, help="batches of 64 in a stretch")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        loaders: list[Rate] = []
        caches = {}
        for name, side in (("original files", None), ("256 px shards", 256)):
            folder = f"{scratch}/{side}"
            build(BuildOptions(source=options.images, output=folder, split="train", shorter_side=side))
            caches[name] = (folder, f"{scratch}/cache-{side}")
            loaders.append(Rate(f"ours, {name}", ours(folder, options.workers, caches[name][1])))
        for use_prefetcher in (True, False):
            name = f"timm, use_prefetcher={use_prefetcher}"
            loaders.append(Rate(name, timms(repeated(options.images, scratch), options.workers, use_prefetcher)))
        for _ in range(options.rounds):
            for loader in loaders:
                # The first stretch was read ahead while the others ran.
                loader.stretch(AHEAD + 2)
                loader.per_core.pop(), loader.per_second.pop()
                loader.stretch(options.batches)
        results = {loader.name: statistics.median(loader.per_core) for loader in loaders}
        for loader in loaders:
            spread = ", ".join(f"{rate:.0f}" for rate in sorted(loader.per_core))
            clock = statistics.median(loader.per_second)
            print(f"{loader.name:28s} {results[loader.name]:6.0f} images/s a core ({spread}), {clock:.0f} by the clock")
        best = max(value for name, value in results.items() if name.startswith("timm"))
        ratios = {name: round(value / best, 2) for name, value in results.items()}
        print(json.dumps({"times timm's better setting": ratios}))
        for name, (folder, cache) in caches.items():
            parts = breakdown(folder, cache)
            print(f"{name}: " + ", ".join(f"{part} {us:.0f} us" for part, us in parts.items()))
        print(
            f"files {len(glob.glob(f'{options.images}/*/*'))}, opencv {cv2.__version__}, load {psutil.getloadavg()[0]}"
        )


if __name__ == "__main__":
    main()
