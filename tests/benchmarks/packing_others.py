"""Packing by other software beside ours: `webdataset.ShardWriter`, litdata's `optimize` and streaming's `MDSWriter`.

    uv run --with litdata==0.2.76 --with mosaicml-streaming==0.13.0 python -m tests.benchmarks.packing_others

Each writer packs the same photographs, repeated under other names, into shards of 128 MB.
Each runs as a process of its own with one worker, in turns within one run; what counts is the time from its start to
its end by the clock. Ours hashes everything (SHA-256, xxh64) and reads each header, and in one variant decodes each
image; the others do none of it. Results are appended to `RESULTS_packing.md`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.packing import RESULTS, with_shard_writer, write_source

SHARD_MB = 128


def iter_files(source: str) -> Iterator[tuple[str, int]]:
    """Each image of class folders with its label."""
    for label, folder in enumerate(sorted(os.scandir(source), key=lambda entry: entry.name)):
        for entry in os.scandir(folder):
            yield entry.path, label


def read_sample(item: tuple[str, int]) -> dict[str, Any]:
    """Read an image, unchanged, as litdata's and streaming's examples for JPEGs do."""
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def with_litdata(source: str, output: Path) -> None:
    """Pack with litdata, which works in processes of its own."""
    import litdata

    inputs, size = list(iter_files(source)), f"{SHARD_MB}MB"
    litdata.optimize(read_sample, inputs, output_dir=str(output), num_workers=1, chunk_bytes=size)


def with_streaming(source: str, output: Path) -> None:
    """Pack with streaming, without compression and without hashes, its defaults."""
    import streaming

    columns, size = {"image": "bytes", "label": "int"}, SHARD_MB * 10**6
    with streaming.MDSWriter(out=str(output), columns=columns, size_limit=size) as writer:
        for item in iter_files(source):
            writer.write(read_sample(item))


WRITERS: dict[str, Callable[[str, Path], None]] = {
    "webdataset ShardWriter": with_shard_writer,
    "litdata optimize": with_litdata,
    "streaming MDSWriter": with_streaming,
}
OURS = {"ours, each image decoded": [], "ours, without decoding": ["--no-decode-check"]}


def command(name: str, source: str, output: Path) -> list[str]:
    """The command line of a writer."""
    if name in WRITERS:
        return [sys.executable, "-m", "tests.benchmarks.packing_others", "--writer", name, source, str(output)]
    flags = ["--source", source, "--output", str(output), "--split", "train", "--workers", "1", *OURS[name]]
    return [sys.executable, "-m", "sharding.build", *flags]


def measure(name: str, source: str, output: Path) -> float:
    """Seconds from the start of a writer's process to its end."""
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    done = subprocess.run(command(name, source, output), capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return seconds


def main() -> None:
    """Measure all writers in turns, print, and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="/dev/shm", help="folder of source and shards")
    parser.add_argument("--writer", nargs=3, metavar=("NAME", "SOURCE", "OUTPUT"), help="run one writer, and end")
    options = parser.parse_args()
    if options.writer:
        name, source, output = options.writer
        WRITERS[name](source, Path(output))
        return
    names = [*OURS, *WRITERS]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = write_source(Path(folder) / "source", options.images)
        for _ in range(options.rounds):
            for name in names:
                seconds[name].append(measure(name, source, Path(folder) / "output"))
        shutil.rmtree(Path(folder) / "output")
    lines = [
        f"{name}: {options.images / statistics.median(taken):,.0f} images/s by the clock "
        f"({', '.join(f'{options.images / one:,.0f}' for one in taken)})"
        for name, taken in seconds.items()
    ]
    load = f"load {psutil.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    stamp = f"{datetime.date.today()}, `python -m tests.benchmarks.packing_others {' '.join(sys.argv[1:])}`, {load}"
    report = "\n".join([f"\n{stamp}\n", *(f"- {line}" for line in lines), ""])
    print(report)
    with open(RESULTS, "a", encoding="utf-8") as stream:
        stream.write(report)


if __name__ == "__main__":
    main()
