"""Images per second of the training loader, timm's and webdataset's: `python -m tests.benchmarks.loading`.

All read the same photographs with the full recipe (crop, flip, RandAugment, erasing, 224 px) in `--workers` processes,
in turns within one run, so that other load on the machine affects all. While one is measured, the processes of the
others are stopped: otherwise they would read ahead on the same cores. What was read ahead is thrown away, and only the
steady state after it counts, over `--seconds`. Rates are per second by the clock, and per second of processor time of
the workers and the main process. A ratio is the median over the rounds of our rate to that of timm's better setting in
the same round. At last it measures how long a consumer of four fifths of the rate waits.
`tests.benchmarks.loading_parts` measures the parts of an image's time.

    python -m tests.benchmarks.loading --images ../shared/imagenet-sample --workers 1 2 3
"""

import argparse
import glob
import os
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
BUFFERED = AHEAD + 4
"""Batches that may have been read ahead: more than any of the loaders keeps with three workers."""
RECIPE = AugmentConfig()


class Rate:
    """Rates of one loader, in processor time and wall time, over several stretches of batches."""

    def __init__(self, name: str, batches: Iterator[int]) -> None:
        """Start the loader, read its first batches, and stop its processes until it is measured."""
        before = set(psutil.Process().children())
        self.name, self._batches = name, batches
        next(batches)
        self._workers = [*(set(psutil.Process().children()) - before)]
        self.per_core: list[float] = []
        self.per_second: list[float] = []
        self._suspend()

    def stretch(self, seconds: float) -> None:
        """Measure the steady state for `seconds`."""
        for worker in self._workers:
            worker.resume()
        for _ in range(BUFFERED):
            next(self._batches)
        began, started, images = self._processor_seconds(), time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            images += next(self._batches)
        self.per_second.append(images / (time.perf_counter() - started))
        self.per_core.append(images / (self._processor_seconds() - began))
        self._suspend()

    def close(self) -> None:
        """End the loader and its processes."""
        for worker in self._workers:
            worker.resume()
        self._batches.close()  # type: ignore[attr-defined]

    def memory_mb(self) -> float:
        """Private memory of the loader's processes, in 10^6 bytes."""
        memory = [process.memory_info() for process in self._workers]
        return sum(info.rss - info.shared for info in memory) / 1e6

    def _suspend(self) -> None:
        for worker in self._workers:
            worker.suspend()

    def _processor_seconds(self) -> float:
        """Processor time of this process and of the loader's processes, in seconds."""
        return sum(sum(process.cpu_times()[:2]) for process in [psutil.Process(), *self._workers])


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


def webdatasets(shards: str, workers: int) -> Iterator[int]:
    """webdataset's loader over the shards of original files, with timm's transforms."""
    import webdataset
    from timm.data.transforms_factory import create_transform

    transform = create_transform(
        224,
        is_training=True,
        use_prefetcher=True,
        hflip=RECIPE.horizontal_flip,
        color_jitter=0.4,
        auto_augment=RECIPE.rand_augment,
        interpolation="random",
    )
    files = sorted(glob.glob(f"{shards}/*.tar"))
    dataset: Any = webdataset.WebDataset(files, resampled=True, shardshuffle=False)
    dataset = dataset.shuffle(500).decode("pilrgb").to_tuple("jpg", "cls").map_tuple(transform)
    loader = webdataset.WebLoader(dataset, batch_size=BATCH, num_workers=workers)
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


def measure(workers: int, folders: dict[str, tuple[str, str]], images: str, rounds: int, seconds: float) -> None:
    """Measure all loaders with so many workers, and print a line for each and for the waiting.

    Args:
        workers: number of loader processes.
        folders: shards and cache of ours, by name.
        images: folder of class folders.
        rounds: stretches of each loader.
        seconds: length of a stretch.
    """
    loaders = [Rate(name, ours(shards, workers, cache)) for name, (shards, cache) in folders.items()]
    for use_prefetcher in (True, False):
        loaders.append(Rate(f"timm, prefetcher {use_prefetcher}", timms(images, workers, use_prefetcher)))
    loaders.append(Rate("webdataset", webdatasets(next(iter(folders.values()))[0], workers)))
    memory: list[list[float]] = []
    for _ in range(rounds):
        for loader in loaders:
            loader.stretch(seconds)
        memory.append([loader.memory_mb() for loader in loaders[: len(folders)]])
    for loader in loaders:
        loader.close()
    timm = loaders[len(folders) : len(folders) + 2]
    best_by_clock = max((loader.per_second for loader in timm), key=statistics.median)
    best_per_core = max((loader.per_core for loader in timm), key=statistics.median)
    print(f"{workers} workers:")
    for loader in loaders:
        spread = ", ".join(f"{rate:.0f}" for rate in loader.per_second)
        by_clock = f"{statistics.median(loader.per_second):5.0f} images/s by the clock ({spread}): "
        by_clock += f"{np.median(np.divide(loader.per_second, best_by_clock)):.2f} x timm"
        per_core = f"{statistics.median(loader.per_core):.0f} images/s a core: "
        per_core += f"{np.median(np.divide(loader.per_core, best_per_core)):.2f} x timm"
        print(f"  {loader.name:22s} {by_clock}; {per_core}")
    print(f"  memory of our workers after each round, MB: {[round(sum(both), 1) for both in memory]}")
    for loader, (shards, cache) in zip(loaders, folders.values(), strict=False):
        rate = 0.8 * statistics.median(loader.per_second)
        share = waiting(shards, workers, cache, rate, 40)
        print(f"  {loader.name}: a consumer of {rate:.0f} images/s waits {100 * share:.2f} % of its time", flush=True)


def main() -> None:
    """Pack the photographs, and measure with each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", default="../shared/imagenet-sample", help="folder of classes with photographs")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3], help="numbers of loader processes")
    parser.add_argument("--rounds", type=int, default=3, help="stretches of each loader, in turns")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a stretch")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        images = repeated(options.images, scratch)
        folders = {}
        for name, side in (("original files", None), ("256 px shards", 256)):
            shards = f"{scratch}/{side}"
            build(BuildOptions(source=images, output=shards, split="train", shorter_side=side, shard_mb=32))
            folders[name] = (shards, f"{scratch}/cache-{side}")
        for workers in options.workers:
            measure(workers, folders, images, options.rounds, options.seconds)
        files = len(glob.glob(f"{options.images}/*/*"))
        print(f"files {files}, cores {os.cpu_count()}, opencv {cv2.__version__}, load {psutil.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
