"""`--dry-run` says what a build would do, and writes nothing."""

import re
from pathlib import Path

from tests.sharding.builds import digests, flags, pack, run_build
from tests.sharding.synthetic import (
    SOURCE_IMAGES,
    photograph,
    train_images,
    write_class_folders,
    write_nameless_folders,
)


def test_a_dry_run_tells_what_the_build_then_does(source: str, reference_shards: Path, tmp_path: Path):
    result = run_build(*flags(source, tmp_path / "shards"), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert f"train: {SOURCE_IMAGES} images of 10 classes, held as folder\n" in result.stdout
    told = re.search(r"  ([\d,]+) shards, about ([\d.,]+) MB\n  about \d+ s with 1 workers", result.stdout)
    assert told is not None, result.stdout
    tars = list(reference_shards.glob("*.tar"))
    assert int(told[1]) == len(tars)
    size = sum(path.stat().st_size for path in tars) / 1e6
    assert 0.9 * size < float(told[2]) < 1.1 * size
    assert "holds no imagenet1k-train yet; nothing was written" in result.stdout
    assert not (tmp_path / "shards").exists()


def test_a_dry_run_names_what_is_left_out_and_unreadable(tmp_path: Path):
    root = write_nameless_folders(tmp_path / "source")
    write_class_folders(root / "train", {".thumbnails": 1})
    (root / "train/loose.jpg").write_bytes(photograph(0))
    broken = root / "train" / train_images(1)[0].wnid / "broken.jpg"
    broken.write_bytes(photograph(0)[:-200])
    shown = run_build(*flags(root, tmp_path / "shards"), "--dry-run").stdout
    for words in ("1 images beside the class folders", "1 images in hidden", "unreadable: train/", "broken.jpg: trunc"):
        assert words in shown


def test_a_dry_run_beside_a_finished_build_changes_nothing(source: str, finished: Path):
    before = digests(finished)
    assert "holds imagenet1k-train already, with" in run_build(*flags(source, finished), "--dry-run").stdout
    assert digests(finished) == before
    pack(source, finished)
