"""Packing: compared with `webdataset.ShardWriter`, over workers, in the codec; and planning all of ImageNet.

    python -m tests.benchmarks.packing [--images 2500] [--rounds 5] [--folder /dev/shm]

The images are photographs from `../shared/imagenet-sample`, repeated under other names, or generated ones. Two variants
are measured in turns in one run and compared by their best rounds; results are appended to `RESULTS_packing.md`.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

import sharding.images
from sharding.build import BuildOptions, build
from sharding.plan import make_plan
from sharding.sources import list_split
from sharding.tarfiles import END, header
from tests.sharding.synthetic import photograph
from tests.support import SAMPLE

RESULTS = Path(__file__).with_name("RESULTS_packing.md")
IMAGENET = 1_281_167
MEAN_BYTES = 110_000
# Repetitions of the images, so that the start of a build and its processes matters as little as in real use.
_REPEATS = 6


def write_source(root: Path, images: int, longer_than: int = 0) -> str:
    """Write class folders of `images` photographs whose shorter side has more than `longer_than` pixels."""
    photographs = [
        path
        for path in sorted(SAMPLE.glob("*/*.JPEG"))
        if min(simplejpeg.decode_jpeg_header(path.read_bytes())[:2]) > longer_than
    ]
    for number in range(images):
        if photographs:
            original = photographs[number % len(photographs)]
            wnid, data = original.parent.name, original.read_bytes()
        else:
            wnid, data = f"n{number % 100:08d}", photograph(number % 100, 640, 480)
        (root / wnid).mkdir(parents=True, exist_ok=True)
        (root / wnid / f"{wnid}_{number}.JPEG").write_bytes(data)
    return str(root)


def repeat_source(source: str, root: Path, repeats: int) -> str:
    """Write the same class folders with `repeats` links to every image."""
    for path in Path(source).glob("*/*.JPEG"):
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(repeats):
            os.link(path, folder / f"{path.stem}x{number}.JPEG")
    return str(root)


def timed(function: Callable[..., None], source: str, output: Path, **options) -> tuple[float, float]:
    """Seconds of wall time, and of processor time of this process and its children."""
    shutil.rmtree(output, ignore_errors=True)
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function(source, output, **options)
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def with_shard_writer(source: str, output: Path) -> None:
    import webdataset  # imports torch, whose objects slow Python's garbage collector, so it runs last

    output.mkdir()
    with webdataset.ShardWriter(str(output / "x-%04d.tar"), maxsize=128e6, maxcount=10**9, verbose=0) as writer:
        for folder in sorted(os.scandir(source), key=lambda entry: entry.name):
            for entry in os.scandir(folder):
                key = entry.name.removesuffix(".JPEG")
                with open(entry.path, "rb") as stream:
                    facts = {
                        "key": key,
                        "label": 3,
                        "class": folder.name,
                        "filename": entry.name,
                        "width": 1,
                        "height": 1,
                    }
                    writer.write({"__key__": key, "jpg": stream.read(), "cls": 3, "json": facts})


def with_ours(source: str, output: Path, **options) -> None:
    build(BuildOptions(**{"source": source, "output": str(output), "split": "train", "workers": 1} | options))


def ratio(first: list[tuple[float, float]], second: list[tuple[float, float]], part: int) -> float:
    """Ratio of the best rounds, because other load on the machine only adds time."""
    return min(entry[part] for entry in first) / min(entry[part] for entry in second)


def measure_writer(source: str, work: Path, images: int, rounds: int) -> tuple[str, float]:
    theirs, ours = [], []
    timed(with_shard_writer, source, work / "theirs")  # imports
    for _ in range(rounds):
        theirs.append(timed(with_shard_writer, source, work / "theirs"))
        ours.append(timed(with_ours, source, work / "ours", decode_check=False))
    rate = images / min(entry[1] for entry in ours)
    text = (
        f"one worker, SHA-256, xxh64 and headers checked, no decode: {ratio(theirs, ours, 0):.2f} x "
        f"webdataset.ShardWriter, which does none of it ({ratio(theirs, ours, 1):.2f} x by processor time); "
        f"{rate:,.0f} images in a second of processor time"
    )
    return text, rate


def decode_all(source: str) -> None:
    """Decode each image as the check does, and print the seconds of wall time."""
    images = [path.read_bytes() for path in Path(source).glob("*/*.JPEG")]
    begun = time.perf_counter()
    for data in images:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1)
    print(time.perf_counter() - begun)


def measure_machine(source: str, rounds: int) -> str:
    """Speed of two independent decoding processes over one on this machine."""
    code = f"from tests.benchmarks.packing import decode_all; decode_all({source!r})"
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, taken in seconds.items():
            started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]
            taken.append(max(float(process.communicate()[0]) for process in started))
    return f"the machine: two processes that only decode are {2 * min(seconds[1]) / min(seconds[2]):.2f} x one"


def measure_workers(source: str, work: Path, images: int, rounds: int) -> tuple[str, float]:
    one, two = [], []
    for _ in range(rounds):
        one.append(timed(with_ours, source, work / "one", shard_mb=16))
        two.append(timed(with_ours, source, work / "two", shard_mb=16, workers=2))
    rate = images / min(entry[1] for entry in one)
    text = (
        f"every image decoded, {images:,} images: two workers {ratio(one, two, 0):.2f} x one in wall time, start of "
        f"processes included; one {rate:,.0f} images in a second of processor time"
    )
    return text, rate


class Watch:
    """Measures the seconds in the codec: decode, resize and encode, or the check of an original."""

    _CODEC = ("_shrink", "_check_whole")

    def __enter__(self) -> Watch:
        self.seconds = 0.0
        self.plain = {name: getattr(sharding.images, name) for name in self._CODEC}
        for name, function in self.plain.items():
            setattr(sharding.images, name, self.watched(function))
        return self

    def __exit__(self, *error: object) -> None:
        for name, function in self.plain.items():
            setattr(sharding.images, name, function)

    def watched(self, function: Callable) -> Callable:
        def call(*arguments, **keywords):
            begun = time.thread_time()
            result = function(*arguments, **keywords)
            self.seconds += time.thread_time() - begun
            return result

        return call


def measure_codec(source: str, work: Path, images: int, rounds: int, side: int) -> tuple[str, float]:
    """Share of the codec (decode, resize, encode) in the processor time of re-encoding."""
    shares, seconds = [], []
    timed(with_ours, source, work / "small", shorter_side=side)  # imports
    for _ in range(rounds):
        with Watch() as watch:
            _, cpu = timed(with_ours, source, work / "small", shorter_side=side)
        shares.append(watch.seconds / cpu)
        seconds.append(cpu)
    rate = images / min(seconds)
    text = (
        f"{side} px: {statistics.median(shares):.1%} of the processor time in the codec "
        f"({min(shares):.1%} to {max(shares):.1%}); {rate:,.0f} images in a second of processor time"
    )
    return text, rate


def write_listing(path: Path, images: int) -> None:
    """Write an ILSVRC training archive with `images` members of one block each."""
    classes = 1000
    with open(path, "wb", buffering=1 << 22) as stream:
        for number in range(classes):
            count = images // classes + (number < images % classes)
            wnid = f"n{number:08d}"
            stream.write(header(f"{wnid}.tar".encode(), count * 1024 + len(END)))
            for image in range(count):
                stream.write(header(f"{wnid}_{image}.JPEG".encode(), 512))
                stream.write(bytes(512))
            stream.write(END)
        stream.write(END)


def peak_mb() -> float:
    """Peak resident memory of this process in MB; `getrusage` would include its parent's at the fork."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def plan_archive(folder: str) -> None:
    """List and plan in a separate process; prints seconds and MB."""
    begun = time.process_time()
    listing = list_split(folder, "train")
    listed = time.process_time()
    plan = make_plan(listing.keys.to_pylist(), listing.sizes, seed=0, shard_bytes=1 << 20)
    listing.digest()
    now = time.process_time()
    memory = peak_mb()
    print(
        f"processor time {listed - begun:.1f} s listing, {now - listed:.1f} s plan of {plan.num_shards:,} shards, "
        f"{memory:,.0f} MB"
    )


def measure_planning(work: Path) -> str:
    folder = work / "archive"
    folder.mkdir()
    write_listing(folder / "ILSVRC2012_img_train.tar", IMAGENET)
    code = f"from tests.benchmarks.packing import plan_archive; plan_archive({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    return f"planning {IMAGENET:,} samples from an archive of as many members: {done.stdout.strip()}"


def write_hostile(work: Path) -> dict[str, str]:
    """Write sources that need much memory: the largest accepted image as progressive JPEG, a row group of 839 MB."""
    bomb, group = work / "progressive" / "a", work / "rows"
    bomb.mkdir(parents=True)
    group.mkdir()
    pixels = np.tile(np.arange(256, dtype=np.uint8), (8192, 32))
    Image.fromarray(pixels).convert("RGB").save(bomb / "1.jpg", progressive=True, subsampling=0)
    images = [photograph(number, 1230, 920) for number in range(16)]  # of MEAN_BYTES; pages are of 1,024 images
    rows = [{"bytes": images[row % 16], "path": f"{row}.JPEG"} for row in range((800 << 20) // len(images[0]))]
    table = pa.table({"image": rows, "label": np.zeros(len(rows), np.int64)})
    pq.write_table(table, group / "train-0.parquet", use_dictionary=False, compression="none", row_group_size=1 << 20)
    return {"a progressive JPEG of 67 million pixels": str(bomb.parent), "a row group of 839 MB": str(group)}


def peak_of_a_build(source: str, output: Path, shard_mb: int) -> float:
    options = f"source={source!r}, output={str(output)!r}, split='train', shard_mb={shard_mb}, workers=1"
    code = (
        f"from sharding.build import *; build(BuildOptions({options}, shorter_side=256)); "
        "from tests.benchmarks.packing import peak_mb; print(peak_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_memory(source: str, work: Path) -> str:
    """Peak memory of one worker at two shard sizes, which do not matter, and on sources that need much memory."""
    peaks = {f"shards of {size} MB": peak_of_a_build(source, work / f"memory{size}", size) for size in (16, 256)}
    for number, (name, hostile) in enumerate(write_hostile(work).items()):
        peaks[name] = peak_of_a_build(hostile, work / f"hostile{number}", 128)
    return "peak memory of a worker: " + ", ".join(f"{peak:.0f} MB with {name}" for name, peak in peaks.items())


def whole(rate: float) -> str:
    """Minutes for the whole training split on 1, 16 and 64 cores at `rate` images per core and second."""
    minutes = [IMAGENET / (rate * cores) / 60 for cores in (1, 16, 64)]
    return " / ".join(f"{value:,.1f}" for value in minutes)


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="/dev/shm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        source = write_source(work / "source", options.images)
        lines = []
        many = repeat_source(source, work / "many", _REPEATS)
        text, decode_rate = measure_workers(many, work, _REPEATS * options.images, min(options.rounds, 3))
        lines += [text, measure_machine(source, options.rounds)]
        for side in (400, 256):
            larger = write_source(work / f"larger{side}", options.images // 2, longer_than=side)
            several = repeat_source(larger, work / f"several{side}", _REPEATS // 2)
            text, _ = measure_codec(several, work, _REPEATS // 2 * (options.images // 2), options.rounds, side)
            lines.append(f"re-encode, images that are all larger: {text}")
        text, encode_rate = measure_codec(source, work, options.images, options.rounds, 400)
        lines.append(f"re-encode, images as they are, where most are smaller and only checked: {text}")
        lines.append(measure_memory(source, work))
        lines.append(measure_planning(work))
        text, plain_rate = measure_writer(source, work, options.images, options.rounds)
        lines.insert(0, text)
    rates = {"untouched": decode_rate, "untouched without decoding": plain_rate, "at 400 px": encode_rate}
    for name, rate in rates.items():
        lines.append(
            f"the whole of ImageNet on 1 / 16 / 64 free cores, {name}: {whole(rate)} minutes by processor time; "
            f"of its {IMAGENET * MEAN_BYTES / 1e9:.0f} GB a disk that reads 1 GB/s is the "
            f"limit from {1e9 / (rate * MEAN_BYTES):.0f} cores on"
        )
    stamp = (
        f"{datetime.date.today()}, 2-core AMD EPYC VM, `python -m tests.benchmarks.packing {' '.join(sys.argv[1:])}`"
    )
    report = "\n".join([f"\n{stamp}\n", *(f"- {line}" for line in lines), ""])
    print(report)
    with open(RESULTS, "a", encoding="utf-8") as stream:
        stream.write(report)


if __name__ == "__main__":
    main()
