"""Images per second and core of the training loader against timm's: `python -m tests.benchmarks.loading`.

Both read the same photographs with the full recipe (crop, flip, RandAugment, erasing, 224 px) in `--workers` processes,
in turns within one run, so that other load on the machine affects both. Rates are per second of processor time of the
workers and the main process, and per second of wall time. A ratio is the median over the rounds of our rate to that of
timm's better setting in the same round. Then it measures how long a consumer of four fifths of the rate waits, and how
memory grows. `tests.benchmarks.loading_parts` measures the parts of an image's time.

    python -m tests.benchmarks.loading --images ../shared/imagenet-sample
"""

import argparse
import glob
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from pipeline.config.schema import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from pipeline.data.loader import TrainLoader, build_train_loader
from sharding.build import BuildOptions, build

BATCH, AHEAD = 64, 8
RECIPE = AugmentConfig()


class Rate:
    """Rates of one loader, in processor time and wall time, over several stretches of batches."""

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

    def memory_mb(self) -> float:
        """Private memory of the loader's processes, in 10^6 bytes."""
        memory = [process.memory_info() for process in self._processes]
        return sum(info.rss - info.shared for info in memory) / 1e6

    def _processor_seconds(self) -> float:
        """Processor time of this process and of the loader's processes, in seconds."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


def our_loader(shards: str, workers: int, cache: str) -> TrainLoader:
    """Our loader, as the training opens it."""
    config = TrainConfig(
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        model=ModelConfig(image_size=224),
        data=DataConfig(shards=shards, workers=workers, cache_dir=cache, prefetch_batches=AHEAD),
        augment=RECIPE,
    )
    return build_train_loader(config, world_size=1, rank=0, start_step=0, total_steps=10**6, device="cpu")


def ours(shards: str, workers: int, cache: str) -> Iterator[int]:
    """Sizes of our loader's batches."""
    with our_loader(shards, workers, cache) as loader:
        for batches in loader:
            for batch in batches:
                yield len(batch.images)


def repeated(images: str, scratch: str) -> str:
    """A folder with eight links to each photograph, so that the loaders seldom reach the end of an epoch."""
    folder = Path(scratch) / "repeated"
    for file in sorted(Path(images).glob("*/*")):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            (folder / file.parent.name / f"{file.stem}_{number}{file.suffix}").symlink_to(file.resolve())
    return str(folder)


def timms_dataset(images: str) -> Any:
    """timm's dataset of a folder of classes; `timms_loader` sets its transforms."""
    from timm.data import create_dataset

    return create_dataset("", root=images, split="train")


def timms_loader(dataset: Any, workers: int, use_prefetcher: bool) -> Any:
    """timm's loader with the full recipe; it gives the dataset its transforms."""
    from timm.data import create_loader

    return create_loader(
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
        persistent_workers=workers > 0,
        pin_memory=False,
        device=torch.device("cpu"),
    )


def timms(images: str, workers: int, use_prefetcher: bool) -> Iterator[int]:
    """timm's loader over the files of a folder of classes."""
    loader = timms_loader(timms_dataset(images), workers, use_prefetcher)
    loader = loader.loader if use_prefetcher else loader  # the prefetcher needs a GPU; the workers' work is the same
    while True:
        for batch in loader:
            yield len(batch[0])


def waiting(shards: str, workers: int, cache: str, rate: float, batches: int) -> float:
    """Share of its time that a consumer of `rate` images per second waits."""
    with our_loader(shards, workers, cache) as loader:
        waited, started = 0.0, 0.0
        for number, parts in enumerate(loader):
            for _ in parts:
                pass
            if number == AHEAD:
                waited, started = 0.0, time.perf_counter()
            elif number > AHEAD:
                waited += loader.data_wait_s
                time.sleep(max(0.0, started + (number - AHEAD) * BATCH / rate - time.perf_counter()))
            if number == AHEAD + batches:
                return waited / (time.perf_counter() - started)
    raise AssertionError("the loader ended")


def main() -> None:
    """Measure, and print a line for each loader and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", default="../shared/imagenet-sample", help="folder of classes with photographs")
    parser.add_argument("--workers", type=int, default=2, help="loader processes, as many as there are cores")
    parser.add_argument("--rounds", type=int, default=5, help="stretches of each loader, alternating")
    parser.add_argument("--batches", type=int, default=6, help="batches of 64 in a stretch")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        images = repeated(options.images, scratch)
        loaders: list[Rate] = []
        caches = {}
        for name, side in (("original files", None), ("256 px shards", 256)):
            folder = f"{scratch}/{side}"
            build(BuildOptions(source=images, output=folder, split="train", shorter_side=side))
            caches[name] = (folder, f"{scratch}/cache-{side}")
            loaders.append(Rate(name, ours(folder, options.workers, caches[name][1])))
        for use_prefetcher in (True, False):
            loaders.append(Rate(f"timm, {use_prefetcher}", timms(images, options.workers, use_prefetcher)))
        memory: list[list[float]] = []
        for _ in range(options.rounds):
            for loader in loaders:
                # The workers read the first stretch ahead while the other loaders ran.
                loader.stretch(AHEAD + 2)
                loader.per_core.pop(), loader.per_second.pop()
                loader.stretch(options.batches)
            memory.append([loader.memory_mb() for loader in loaders[:2]])
        timm = np.array([loader.per_core for loader in loaders[2:]])
        better = timm[np.median(timm, axis=1).argmax()]
        for loader in loaders:
            spread = ", ".join(f"{rate:.0f}" for rate in loader.per_core)
            rates = statistics.median(loader.per_core), statistics.median(loader.per_second)
            ratio = f"{np.median(loader.per_core / better):.2f} x"
            print(f"{loader.name:14s} {rates[0]:5.0f} images/s a core ({spread}), {rates[1]:.0f} of wall time: {ratio}")
        print(f"memory of ours after each round, MB: {[round(sum(both), 1) for both in memory]}")
        for loader, (folder, cache) in zip(loaders, caches.values(), strict=False):
            rate = 0.8 * statistics.median(loader.per_second)
            share = waiting(folder, options.workers, cache, rate, 40)
            print(f"{loader.name}: a consumer of {rate:.0f} images/s waits {100 * share:.2f} % of its time")
        print(
            f"files {len(glob.glob(f'{options.images}/*/*'))}, opencv {cv2.__version__}, load {psutil.getloadavg()[0]}"
        )


if __name__ == "__main__":
    main()
