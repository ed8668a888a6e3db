"""Packing: against `webdataset.ShardWriter`, over workers, in the codec, and planning the whole of ImageNet.

    python -m tests.benchmarks.packing [--images 2500] [--rounds 5] [--folder /tmp]

Real photographs are taken from `../shared/imagenet-sample` (repeated under other names), or drawn. What is compared is
measured alternately in one run, and given as the ratio of medians; figures are appended to `RESULTS_packing.md`.
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

import simplejpeg
import webdataset

import sharding.images
from sharding.build import BuildOptions, build
from sharding.plan import make_plan
from sharding.sources import list_split
from sharding.tarfiles import END, header
from tests.sharding.synthetic import photograph

SAMPLE = Path(__file__).parents[2] / "../shared/imagenet-sample"
RESULTS = Path(__file__).with_name("RESULTS_packing.md")
IMAGENET = 1_281_167
MEAN_BYTES = 110_000
# Of the images for two workers against one, so that the start of the processes matters as little as in real life.
_REPEATS = 6


def write_source(root: Path, images: int, longer_than: int = 0) -> str:
    """Class folders of `images` photographs whose shorter side is longer than so many pixels."""
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
    """The same class folders with every image under `repeats` names, by links."""
    for path in Path(source).glob("*/*.JPEG"):
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(repeats):
            os.link(path, folder / f"{path.stem}{number}.JPEG")
    return str(root)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and seconds of the processor in this process and those it started."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def with_shard_writer(source: str, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
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
    shutil.rmtree(output, ignore_errors=True)
    build(BuildOptions(**{"source": source, "output": str(output), "split": "train", "workers": 1} | options))


def ratio(first: list[tuple[float, float]], second: list[tuple[float, float]], part: int) -> float:
    return statistics.median(entry[part] for entry in first) / statistics.median(entry[part] for entry in second)


def measure_writer(source: str, work: Path, images: int, rounds: int) -> str:
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(timed(lambda: with_shard_writer(source, work / "theirs")))
        ours.append(timed(lambda: with_ours(source, work / "ours", decode_check=False)))
    rate = images / statistics.median(entry[0] for entry in ours)
    return (
        f"one worker, SHA-256, xxh64 and headers checked, no decode: {ratio(theirs, ours, 0):.2f} x "
        f"webdataset.ShardWriter, which does none of it ({ratio(theirs, ours, 1):.2f} x by processor time); "
        f"{rate:,.0f} images/s"
    )


def measure_workers(source: str, work: Path, images: int, rounds: int) -> tuple[str, float]:
    one, two = [], []
    for _ in range(rounds):
        one.append(timed(lambda: with_ours(source, work / "one", shard_mb=64)))
        two.append(timed(lambda: with_ours(source, work / "two", shard_mb=64, workers=2)))
    rate = images / statistics.median(entry[1] for entry in one)
    text = (
        f"every image decoded: two workers {ratio(one, two, 0):.2f} x one, start of processes included "
        f"({2 * ratio(one, two, 1):.2f} x if both cores were free, by processor time); one {rate:,.0f} images in a "
        "second of processor time"
    )
    return text, rate


def measure_codec(source: str, work: Path, images: int, rounds: int, side: int) -> tuple[str, float]:
    """The share of the codec in re-encoding, by timing each of its calls."""
    import cv2

    spent = 0.0

    def watched(function: Callable) -> Callable:
        def call(*arguments, **keywords):
            nonlocal spent
            begun = time.thread_time()
            result = function(*arguments, **keywords)
            spent += time.thread_time() - begun
            return result

        return call

    class WatchedCodec:
        decode_jpeg_header = staticmethod(sharding.images.simplejpeg.decode_jpeg_header)
        decode_jpeg = staticmethod(watched(sharding.images.simplejpeg.decode_jpeg))
        encode_jpeg = staticmethod(watched(sharding.images.simplejpeg.encode_jpeg))

    plain, resize = sharding.images.simplejpeg, cv2.resize
    shares, seconds = [], []
    for _ in range(rounds):
        spent = 0.0
        sharding.images.simplejpeg, cv2.resize = WatchedCodec, watched(resize)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            _, cpu = timed(lambda: with_ours(source, work / "small", shorter_side=side))
        finally:
            sharding.images.simplejpeg, cv2.resize = plain, resize
        shares.append(spent / cpu)
        seconds.append(cpu)
    rate = images / statistics.median(seconds)
    text = (
        f"re-encode to {side} px: {statistics.median(shares):.1%} of the processor time in the codec; "
        f"{rate:,.0f} images in a second of processor time"
    )
    return text, rate


def write_listing(path: Path, images: int) -> None:
    """An ILSVRC training archive of as many members as the real one, each of one block."""
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
    """The most memory this process ever had resident, in MB; `getrusage` would count its parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def plan_archive(folder: str) -> None:
    """Listing and plan, as a process of its own: prints seconds and MB."""
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


def measure_memory(source: str, work: Path) -> str:
    """The peak of one worker at two shard sizes: it does not depend on them."""
    peaks = []
    for shard_mb in (16, 256):
        code = (
            "from sharding.build import *; "
            f"build(BuildOptions(source={source!r}, output={str(work / f'memory{shard_mb}')!r}, split='train', "
            f"shard_mb={shard_mb}, workers=1, shorter_side=256)); "
            "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]) / 1e3)
    return f"peak memory of a worker: {peaks[0]:.0f} MB with shards of 16 MB, {peaks[1]:.0f} MB with shards of 256 MB"


def whole(rate: float) -> str:
    """Minutes for the whole training split at a rate per core."""
    minutes = [IMAGENET / (rate * cores) / 60 for cores in (1, 16, 64)]
    return " / ".join(f"{value:,.1f}" for value in minutes)


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        source = write_source(work / "source", options.images)
        lines = [measure_writer(source, work, options.images, options.rounds)]
        many = repeat_source(source, work / "many", _REPEATS)
        text, decode_rate = measure_workers(many, work, _REPEATS * options.images, min(options.rounds, 3))
        lines.append(text)
        for side in (400, 256):
            larger = write_source(work / f"larger{side}", options.images // 2, longer_than=side)
            text, _ = measure_codec(larger, work, options.images // 2, min(options.rounds, 3), side)
            lines.append(f"images that are all larger: {text}")
        text, encode_rate = measure_codec(source, work, options.images, 1, 400)
        lines.append(f"as they are, where most are smaller and only checked: {text}")
        lines.append(measure_memory(source, work))
        lines.append(measure_planning(work))
    lines.append(
        f"the whole of ImageNet on 1 / 16 / 64 free cores, in minutes, by processor time: "
        f"untouched {whole(decode_rate)}, at 400 px {whole(encode_rate)}"
    )
    lines.append(
        f"it reads {IMAGENET * MEAN_BYTES / 1e9:.0f} GB, and untouched writes as much: a disk of 1 GB/s each way is "
        f"the limit from {1e9 / (decode_rate * MEAN_BYTES):.0f} cores on untouched, from "
        f"{1e9 / (encode_rate * MEAN_BYTES):.0f} at 400 px"
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
