"""The build command: the same bytes however the work is shared, and what it prints."""

import json
import multiprocessing
from pathlib import Path

import pytest

from sharding import ShardingError, load_index, load_manifest
from sharding.build import BuildOptions, build
from sharding.pool import prepare_workers
from sharding.verify import VerifyOptions, verify
from tests.sharding.builds import REPOSITORY, digests, flags, pack, run_build, run_build_process
from tests.sharding.synthetic import (
    NAMES,
    SOURCE_IMAGES,
    WNIDS,
    synset_mapping,
    train_images,
    validation_images,
    write_archives,
    write_nameless_folders,
)

SAMPLE = REPOSITORY / "../shared/imagenet-sample"


def test_the_number_of_workers_does_not_change_a_byte(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path, workers=3)
    assert digests(tmp_path) == reference


def test_tasks_give_the_same_bytes_and_the_last_publishes(source: str, reference: dict[str, str], tmp_path: Path):
    for index in (2, 0, 1):
        manifests = pack(source, tmp_path, task_index=index, task_count=3)
        assert len(manifests) == (index == 1)
        assert (tmp_path / "imagenet1k-train.json").exists() == (index == 1)
    assert digests(tmp_path) == reference


@pytest.mark.thorough
def test_slurm_tasks_at_the_same_time_give_the_same_bytes(source: str, reference: dict[str, str], tmp_path: Path):
    prepare_workers("tests.sharding.builds")
    context = multiprocessing.get_context("forkserver")
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "3"}
    variables = [step | {"SLURM_PROCID": process} for process in "012"]
    tasks = [context.Process(target=run_build_process, args=(flags(source, tmp_path), entry)) for entry in variables]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert [task.exitcode for task in tasks] == [0, 0, 0]
    assert digests(tmp_path) == reference


def test_a_task_with_shards_left_to_others_reports_it(source: str, tmp_path: Path):
    done = run_build(*flags(source, tmp_path), "--task-index", "0", "--task-count", "2")
    assert done.returncode == 0
    assert "task 0 of 2 is done; some shards are left to the other tasks" in done.stdout


def test_all_splits_are_listed_before_the_first_is_packed(tmp_path: Path):
    write_archives(tmp_path, train_images(1), validation_images(2))
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(ShardingError, match=r"devkit_t12.tar.gz is missing"):
        pack(tmp_path, tmp_path / "out", split=None)
    assert not (tmp_path / "out").exists()


def test_a_build_without_a_terminal_logs_progress_and_a_summary(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sharding.progress._SECONDS_BETWEEN_LINES", 0)
    done = run_build(*flags(source, tmp_path))
    tars = sum(name.endswith(".tar") for name in digests(tmp_path))
    lines = done.stderr.splitlines()
    assert len(lines) == tars
    assert lines[-1].startswith(f"imagenet1k-train: {SOURCE_IMAGES} of {SOURCE_IMAGES} images, ")
    assert all(unit in lines[0] for unit in ("images/s", "MB/s", "s left"))
    assert f"{SOURCE_IMAGES} images in {tars} shards" in done.stdout
    assert "digest" in done.stdout.splitlines()[-1]


def test_class_names_given_to_a_finished_build_change_its_digest_and_are_reported(tmp_path: Path):
    source, output, lines = write_nameless_folders(tmp_path / "source"), tmp_path / "out", []
    (before,) = pack(source, output)
    index = load_index(str(output), before)
    mapping = tmp_path / "mapping.txt"
    mapping.write_text(synset_mapping())
    options = {"source": str(source), "output": str(output), "split": "train", "shard_mb": 1, "workers": 1}
    (after,) = build(BuildOptions(**options, classes=str(mapping)), log=lines.append)
    assert [entry.name for entry in after.classes] == [NAMES[wnid] for wnid in WNIDS]
    assert load_manifest(str(output), "train").digest == after.digest != before.digest
    assert load_index(str(output), after).equals(index)
    assert any(before.digest in line and "cannot resume" in line for line in lines)
    assert verify(VerifyOptions(shards=str(output), workers=1)) == []
    (kept,) = pack(source, output)
    assert kept.digest == after.digest


def test_whole_imagenet_counts_packed_images_not_listed_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sharding.imagenet.NUM_CLASSES", 10)
    monkeypatch.setattr("sharding.imagenet.NUM_IMAGES", {"train": 10})
    monkeypatch.setattr("sharding.imagenet.PER_CLASS", {"train": (1, 1)})
    source = write_nameless_folders(tmp_path / "source")
    (whole,) = pack(source, tmp_path / "whole")
    assert whole.settings["whole_imagenet"] is True
    assert verify(VerifyOptions(shards=str(tmp_path / "whole"), workers=1)) == []
    monkeypatch.setattr("sharding.imagenet.PER_CLASS", {"train": (1, 2)})
    monkeypatch.setattr("sharding.imagenet.NUM_IMAGES", {"train": 11})
    faults = verify(VerifyOptions(shards=str(tmp_path / "whole"), workers=1))
    assert [fault.what for fault in faults] == ["10 images; ImageNet's train split has 11"]

    monkeypatch.setattr("sharding.imagenet.NUM_IMAGES", {"train": 10})
    next((source / "train").glob("*/*.JPEG")).write_bytes(b"no image")
    (part,) = pack(source, tmp_path / "part", on_bad="skip")
    assert part.settings["whole_imagenet"] is False
    (again,) = pack(source, tmp_path / "part", on_bad="skip")
    assert again.digest == part.digest


def test_the_settings_in_the_manifest_have_the_same_keys_as_before(reference_shards: Path):
    """A build recognises shards of an earlier version by these settings."""
    manifest = load_manifest(str(reference_shards), "train")
    assert manifest.settings.keys() == {
        *("samples_listed", "whole_imagenet", "listing_sha256", "shard_mb", "seed"),
        *("shorter_side", "quality", "decode_check"),
    }


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no photographs beside the repository")
def test_real_photographs_are_packed_unchanged_as_either_split(tmp_path: Path):
    for split in ("train", "validation"):
        (manifest,) = pack(str(SAMPLE), tmp_path, split=split, shard_mb=8, workers=2)
        assert manifest.num_samples == 250
        assert manifest.odd == ()
        assert len(manifest.shards) == 4
    train, validation = (load_manifest(str(tmp_path), split) for split in ("train", "validation"))
    assert train.classes == validation.classes
    assert json.loads((tmp_path / "_info.json").read_text())["splits"].keys() == {"train", "validation"}
