"""A decoder that crashes in C code ends a worker, but neither the build nor the index, and the image is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharding.builds import REPOSITORY, environment, flags
from tests.sharding.synthetic import noise, tar_bytes

IMAGES = 12


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three classes of large images, several shards of them."""
    root = tmp_path / "source"
    for label in range(3):
        (root / "train" / f"class_{label}").mkdir(parents=True)
        for number in range(IMAGES):
            (root / "train" / f"class_{label}" / f"{number}.jpg").write_bytes(noise(number, 500))
    return root


def append(root: Path, number: int, end: bytes) -> None:
    with open(root / "train" / "class_1" / f"{number}.jpg", "ab") as file:
        file.write(end)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.sharding.crashing_decoder", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_images_that_crash_the_decoder_are_skipped_and_listed(folders: Path, tmp_path: Path, workers: int):
    append(folders, 3, b"segmentation fault")
    append(folders, 7, b"heap corruption")
    done = run("build", *flags(folders, tmp_path / "out", workers), "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "crashed (SIGSEGV) while reading train/class_1/3.jpg" in done.stderr
    manifest = json.loads((tmp_path / "out" / "imagenet1k-train.json").read_text())
    odd = {entry["file"]: (entry["reason"], entry["action"]) for entry in manifest["odd"]}
    assert odd == {
        "train/class_1/3.jpg": ("its decoder crashed (SIGSEGV)", "skipped"),
        "train/class_1/7.jpg": ("its decoder crashed (SIGABRT)", "skipped"),
    }
    assert sum(shard["samples"] for shard in manifest["shards"]) == 3 * IMAGES - 2


@pytest.mark.thorough
def test_images_that_crash_the_decoder_stop_the_build_by_name(folders: Path, tmp_path: Path):
    append(folders, 3, b"segmentation fault")
    done = run("build", *flags(folders, tmp_path / "out"))
    assert done.returncode == 1
    assert "error: 1 unreadable image:\n  train/class_1/3.jpg: its decoder crashed (SIGSEGV)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_worker_killed_for_its_memory_is_no_fault_of_the_image_but_names_it(folders: Path, tmp_path: Path):
    append(folders, 3, b"out of memory")
    done = run("build", *flags(folders, tmp_path / "out", 2), "--on-bad", "skip")
    assert done.returncode == 1
    assert "error: a worker process was killed (SIGKILL) while reading train/class_1/3.jpg: " in done.stderr
    assert "fewer --workers" in done.stderr


@pytest.mark.thorough
def test_index_and_verify_name_the_image_that_crashes_the_decoder(tmp_path: Path):
    members = [("a.jpg", noise(0, 50)), ("a.cls", b"0"), ("b.jpg", noise(1, 50)), ("b.cls", b"0")]
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members))
    assert run("index", "--shards", str(tmp_path)).returncode == 0
    members[2] = ("b.jpg", noise(1, 50) + b"heap corruption")
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members))
    for command in ("index", "verify"):
        done = run(command, "--shards", str(tmp_path))
        assert done.returncode == 1
        assert "x-train-0.tar: b: its decoder crashed (SIGABRT)" in done.stdout + done.stderr
