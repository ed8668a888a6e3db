"""The same bytes however the work is shared, and a clear refusal of what does not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sharding import ManifestError, OutputError, ShardingError, load_index, load_manifest
from sharding.slurm import slurm_task
from sharding.verify import VerifyOptions, verify
from tests.sharding.packing import REPOSITORY, command, contents, environment, flags, pack, start
from tests.sharding.synthetic import photograph, train_images, validation_images, write_archives

SAMPLE = REPOSITORY / "../shared/imagenet-sample"


def test_workers_do_not_change_a_byte(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path, workers=3)
    assert contents(tmp_path) == reference


def test_tasks_do_not_change_a_byte_and_the_last_publishes(source: str, reference: dict[str, str], tmp_path: Path):
    for index in (2, 0, 1):
        manifests = pack(source, tmp_path, task_index=index, task_count=3)
        assert len(manifests) == (index == 1)
        assert (tmp_path / "imagenet1k-train.json").exists() == (index == 1)
    assert contents(tmp_path) == reference


def test_slurm_tasks_at_the_same_time(source: str, reference: dict[str, str], tmp_path: Path):
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "3"}
    tasks = [start(*flags(source, tmp_path), SLURM_PROCID=process, **step) for process in "012"]
    for task in tasks:
        output, errors = task.communicate()
        assert task.returncode == 0, errors
        assert "digest" in output or "left to the other tasks" in output
    assert contents(tmp_path) == reference


@pytest.mark.parametrize(
    ("variables", "task"),
    [
        ({}, (0, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (0, 1)),  # a batch script itself
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_ID": "0"}, (5, 8)),
        ({"ID": "7", "MIN": "3", "MAX": "9", "COUNT": "4", "STEP": "2"}, (2, 4)),
        ({"ID": "1", "MIN": "0", "MAX": "1", "COUNT": "2"} | {"NTASKS": "4", "PROCID": "3", "STEP_ID": "1"}, (7, 8)),
    ],
)
def test_slurm_task(variables: dict[str, str], task: tuple[int, int]):
    array = {"ID", "MIN", "MAX", "COUNT", "STEP"}
    names = {
        key if key.startswith("SLURM") else f"SLURM_ARRAY_TASK_{key}" if key in array else f"SLURM_{key}": value
        for key, value in variables.items()
    }
    assert slurm_task(names) == task


def test_array_with_gaps_is_refused():
    array = {"ID": "7", "MIN": "1", "MAX": "7", "COUNT": "3"}
    with pytest.raises(ShardingError, match="gaps"):
        slurm_task({f"SLURM_ARRAY_TASK_{key}": value for key, value in array.items()})
    with pytest.raises(ShardingError, match="SLURM_ARRAY_TASK_MIN"):
        slurm_task({"SLURM_ARRAY_TASK_ID": "7"})


def test_other_settings_in_the_same_output_are_refused_with_the_difference(source: str, tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)  # not finished
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="seed: 0 there, 1 here"):
        pack(source, tmp_path, seed=1)
    pack(source, tmp_path)
    with pytest.raises(OutputError, match="shorter_side: None there, 256 here"):
        pack(source, tmp_path, shorter_side=256)
    assert before.items() - {entry for entry in before.items() if ".parts" in entry[0]} <= contents(tmp_path).items()


def test_finished_shards_are_recognised_by_their_digests(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)
    finished = sorted(tmp_path.glob("*.tar"))
    damaged, whole = finished[0], finished[1]
    content = bytearray(damaged.read_bytes())
    content[5000] ^= 1
    damaged.write_bytes(content)
    kept = whole.stat().st_ino
    pack(source, tmp_path)
    assert contents(tmp_path) == reference
    assert whole.stat().st_ino == kept


def test_a_lost_shard_of_a_finished_split_is_written_again(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path)
    first, second = sorted(tmp_path.glob("*.tar"))[:2]
    first.unlink()
    kept = second.stat().st_ino
    pack(source, tmp_path)
    assert contents(tmp_path) == reference
    assert second.stat().st_ino == kept


def test_a_lost_index_of_a_finished_split_is_written_again(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path)
    (tmp_path / "imagenet1k-train.parquet").unlink()
    with pytest.raises(ManifestError, match=r"imagenet1k-train.parquet is missing"):
        verify(VerifyOptions(shards=str(tmp_path)))
    pack(source, tmp_path)
    assert contents(tmp_path) == reference


def test_all_splits_are_listed_before_the_first_is_packed(tmp_path: Path):
    write_archives(tmp_path, train_images(1), validation_images(2))
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(ShardingError, match=r"devkit_t12.tar.gz is missing"):
        pack(tmp_path, tmp_path / "out", split=None)
    assert not (tmp_path / "out").exists()


def test_shards_of_others_are_not_overwritten(source: str, tmp_path: Path):
    (tmp_path / "imagenet1k-train-0000.tar").write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"already holds imagenet1k-train-0000.tar .* sharding.index"):
        pack(source, tmp_path)
    assert (tmp_path / "imagenet1k-train-0000.tar").read_bytes() == b"theirs"


def test_second_build_on_one_output_is_refused_while_the_first_runs(source: str, tmp_path: Path):
    slow = "import time, sharding.writer as w; p = w.pack_image; w.pack_image = lambda *a: (time.sleep(0.2), p(*a))[1]"
    first = start(*flags(source, tmp_path), prelude=slow)
    try:
        while not list(tmp_path.glob(".imagenet1k-train.parts/*.lock")):
            assert first.poll() is None
        second = command(*flags(source, tmp_path))
        assert second.returncode == 1
        assert "another build is writing imagenet1k-train" in second.stderr
    finally:
        first.kill()
        first.wait()
    third = command(*flags(source, tmp_path))
    assert third.returncode == 0, third.stderr


def test_a_script_without_a_main_guard_may_use_workers(source: str, reference: dict[str, str], tmp_path: Path):
    script = tmp_path / "script.py"
    output = tmp_path / "out"
    options = f"source={source!r}, output={str(output)!r}, split='train', shard_mb=1, workers=2"
    script.write_text(f"from sharding.build import BuildOptions, build\nbuild(BuildOptions({options}))\n")
    paths = environment(PYTHONPATH=str(REPOSITORY))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(output) == reference


def test_splits_of_one_name_share_their_labels(source: str, tmp_path: Path):
    train = tmp_path / "train"
    for name in ("a", "b", "c"):
        (train / name).mkdir(parents=True)
        (train / name / "1.jpg").write_bytes(photograph(ord(name)))
    (tmp_path / "val" / "c").mkdir(parents=True)
    (tmp_path / "val" / "c" / "2.jpg").write_bytes(photograph(7))
    output = tmp_path / "out"
    pack(str(tmp_path), output)
    (manifest,) = pack(str(tmp_path), output, split="validation")
    assert load_index(str(output), manifest)["label"].to_pylist() == [2]
    (tmp_path / "val" / "d").mkdir()
    (tmp_path / "val" / "d" / "3.jpg").write_bytes(photograph(8))
    with pytest.raises(OutputError, match=r"1 others \(d\)"):
        pack(str(tmp_path), output, split="validation")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
        (["--shard-mb", "0"], "--shard-mb 0: it must be from 1 to 4,096"),
        (["--task-index", "1"], "--task-index and --task-count belong together"),
        (["--task-index", "3", "--task-count", "3"], "--task-index 3: it must be from 0 to 2"),
        (["--output", "/dev/null/x"], "/dev/null/x cannot be written"),
        (["--output", "s4://bucket/x"], "'s4://bucket/x' cannot be opened"),
        (["--classes", "/nowhere.txt"], "--classes /nowhere.txt: there is no such file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_1(flags: list[str], message: str, source: str, tmp_path: Path):
    done = command("--source", source, "--split", "train", "--output", str(tmp_path / "out"), *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


def test_a_wrong_flag_names_the_right_one():
    done = command("--sources", "x")
    assert done.returncode == 2
    assert "--source" in done.stderr


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no photographs beside the repository")
def test_real_photographs_as_either_split(tmp_path: Path):
    for split in ("train", "validation"):
        (manifest,) = pack(str(SAMPLE), tmp_path, split=split, shard_mb=8, workers=2)
        assert manifest.num_samples == 250
        assert manifest.odd == ()
        assert len(manifest.shards) == 4
    train, validation = (load_manifest(str(tmp_path), split) for split in ("train", "validation"))
    assert train.classes == validation.classes
    assert json.loads((tmp_path / "_info.json").read_text())["splits"].keys() == {"train", "validation"}
