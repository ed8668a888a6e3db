"""Who writes to a mirror: copies of a run directory, other addresses, stores that are down, and damaged files."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.launch.origin import begin_again
from pipeline.mirror import worker
from pipeline.mirror.claim import check_mirror, use_mirror
from pipeline.mirror.copier import Copier, DamagedHereError, TakenOverError
from pipeline.mirror.fetch import fetch_run
from pipeline.mirror.layout import SNAPSHOT_NAME, Snapshot, owners
from pipeline.mirror.place import MirrorError, Place
from pipeline.run.files import checkpoints
from pipeline.run.mirror_files import TARGET_NAME, lacks_something, read_progress, read_target
from sharding import ShardingError
from tests.support.mirrored_runs import bring, copy_all, files_below, mirror, publish, steps_in


@pytest.fixture
def is_down(monkeypatch):
    """A store that does not answer, not even for the region of its bucket."""

    def refuse(_: str):
        raise ShardingError("cannot be opened as a folder") from OSError("no route to host")

    return lambda: monkeypatch.setattr("pipeline.mirror.place.open_filesystem", refuse)


def test_a_copied_run_directory_leaves_the_mirror_to_the_original(run_dir: Path, location: str):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    copied = run_dir.with_name("copied")
    shutil.copytree(run_dir, copied)
    assert read_target(copied) is None
    with pytest.raises(MirrorError, match="holds the mirror of"):
        check_mirror(copied, location)
    assert check_mirror(run_dir, location) is None
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert read_target(moved) is not None
    fetched = run_dir.with_name("fetched")
    fetch_run(location, fetched, take_over=True, say=print)
    shutil.copytree(fetched, run_dir.with_name("copy of fetched"))
    assert read_target(fetched) is not None
    assert read_target(run_dir.with_name("copy of fetched")) is None


def test_the_same_folder_by_another_address_is_the_same_mirror(run_dir: Path, location: str):
    copy_all(mirror(run_dir, location))
    other = f"file://{location}/"
    assert check_mirror(run_dir, other) is None
    before = owners(Place(location))
    use_mirror(run_dir, other)
    target = read_target(run_dir)
    assert target is not None
    assert (target.location, [target.owner]) == (other, before)
    assert owners(Place(location)) == before
    publish(run_dir, 100)
    copy_all(Copier(run_dir, target))
    fetch_run(location, run_dir, take_over=False, say=print)  # it owns that mirror already
    assert owners(Place(location)) == before


def test_a_store_that_is_down_does_not_keep_a_run_from_going_on(run_dir: Path, location: str, is_down):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    is_down()
    warning = check_mirror(run_dir, location)
    assert warning is not None
    assert "does not answer" in warning
    said: list[str] = []
    fetch_run(location, run_dir, take_over=False, say=said.append)
    assert "goes on from its own checkpoints" in said[0]
    with pytest.raises(MirrorError, match="cannot be opened"):
        fetch_run(location, run_dir.with_name("fresh"), take_over=False, say=said.append)


def test_a_run_that_is_begun_again_leaves_its_former_checkpoints_in_the_mirror(run_dir: Path, location: str):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    begin_again(run_dir)
    copier = mirror(run_dir, location)
    publish(run_dir, 50)
    copy_all(copier)
    assert steps_in(location) == [50, 100]
    there = run_dir.with_name("there")
    fetch_run(location, there, take_over=True, say=print)
    assert sorted(checkpoints(there)) == [50]


@pytest.mark.parametrize("damage", ["", '{"step"', "{}", "[]", '{"files": {"a": 1}}'])
def test_a_damaged_manifest_is_set_aside_and_the_others_are_copied(damage: str, run_dir: Path, location: str, capfd):
    publish(run_dir, 100)
    publish(run_dir, 200)
    (run_dir / "checkpoints" / "step_00000200" / "manifest.json").write_text(damage)
    copier = mirror(run_dir, location)
    with pytest.raises(DamagedHereError, match=r"step_00000200/manifest\.json is damaged"):
        copier.copy_next()
    copy_all(copier)
    assert steps_in(location) == [100]
    assert "has all but 1 checkpoints that are damaged here: step 100" in str(worker.complete(run_dir))
    (run_dir / "config.json").write_text("{")
    publish(run_dir, 300)
    worker.follow(run_dir, lambda _: True)
    assert "config.json is damaged" in capfd.readouterr().err
    assert steps_in(location) == [100]


def test_a_copy_that_is_killed_leaves_the_mirror_incomplete(run_dir: Path, location: str, monkeypatch):
    publish(run_dir, 100)
    use_mirror(run_dir, location)
    worker.follow(run_dir, lambda _: True)
    assert read_progress(run_dir).is_complete
    assert not lacks_something(run_dir)
    publish(run_dir, 200)
    assert lacks_something(run_dir)  # the process was killed before it has looked

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(Copier, "_copy", killed)
    with pytest.raises(SystemExit):
        worker.follow(run_dir, lambda _: True)
    assert not read_progress(run_dir).is_complete


@pytest.mark.parametrize(
    "name",
    [
        "notify.json",
        "mirror.json",
        ".mirror.lock",
        "submitit/1_submitted.pkl",
        "code/pipeline/train/attempt.py",
        "../config.json",
        "/etc/passwd.json",
        "export/../config.json",
        "export/.hidden",
        "checkpoints/step_00000100/../x",
        "checkpoints/other/rank.safetensors",
    ],
)
def test_a_mirror_names_no_file_but_those_that_are_mirrored(name: str, tmp_path: Path):
    folder = tmp_path / "000001-aa" / "step_00000100-bb"
    folder.mkdir(parents=True)
    files = {name: {"bytes": 1, "sha256": "0"}}
    (folder / SNAPSHOT_NAME).write_text(json.dumps({"schema": 1, "key": "k", "step": 1, "files": files}))
    with pytest.raises(MirrorError, match="names a file"):
        _ = Snapshot(Place(str(tmp_path)), "000001-aa/step_00000100-bb").content


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_copy_that_does_not_see_the_original_never_mixes_with_it(run_dir: Path, location: str):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    copied = run_dir.with_name("copied")
    # On another cluster there is no original.
    shutil.copytree(run_dir, copied)
    (copied / TARGET_NAME).write_text((copied / TARGET_NAME).read_text().replace(str(run_dir), "/elsewhere"))
    originals = read_target(run_dir), read_target(copied)
    publish(run_dir, 200)
    copy_all(Copier(run_dir, originals[0]))  # type: ignore[arg-type]
    publish(copied, 150)
    before = sorted(Path(location).rglob("*"))
    with pytest.raises(TakenOverError, match="a copy of this run directory"):
        Copier(copied, originals[1]).copy_next()  # type: ignore[arg-type]
    assert sorted(Path(location).rglob("*")) == before
    with pytest.raises(MirrorError, match="holds the mirror of"):
        check_mirror(copied, location)
    # The original's next attempts go on, also where the disk is full at first.
    copier = Copier(run_dir, originals[0])  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.run.mirror_files.write_target", full_disk)
        with pytest.raises(OSError, match="No space"):
            copier.copy_next()
    copy_all(copier)
    copy_all(Copier(run_dir, read_target(run_dir)))  # type: ignore[arg-type]
    assert check_mirror(run_dir, location) is None
    assert steps_in(location) == [100, 200]


def test_two_places_never_mix_their_checkpoints(run_dir: Path, tmp_path: Path):
    location, there = str(tmp_path / "mirror"), tmp_path / "there" / "run"
    publish(run_dir, 100)
    copier = mirror(run_dir, location)
    copy_all(copier)
    bring(location, there)
    bring(location, there)  # given again, it changes nothing
    publish(run_dir, 200)
    before = files_below(tmp_path / "mirror")
    with pytest.raises(TakenOverError, match=str(there)):
        copier.copy_next()
    assert files_below(tmp_path / "mirror") == before
    assert lacks_something(run_dir)
    assert f"was taken over by {os.uname().nodename}:{there}" in str(worker.complete(run_dir))
    assert not lacks_something(run_dir)  # nothing can be done about it
    with pytest.raises(MirrorError, match="earlier part of this run"):
        bring(location, run_dir)
    publish(there, 150)
    target = read_target(there)
    assert target is not None
    copy_all(Copier(there, target))
    assert steps_in(location) == [100, 150]
    with pytest.raises(MirrorError, match=r"holds the mirror of .*/there/run"):
        check_mirror(run_dir, location)
    assert check_mirror(there, location) is None


def test_a_run_that_is_still_trained_is_taken_over_only_if_told(run_dir: Path, tmp_path: Path, monkeypatch):
    location = str(tmp_path / "mirror")
    publish(run_dir, 100)
    monkeypatch.setattr("pipeline.mirror.copier.run_state", lambda _: "running")
    copy_all(mirror(run_dir, location))
    with pytest.raises(MirrorError, match=f"still trained at {os.uname().nodename}:{run_dir}.*--take-over"):
        bring(location, tmp_path / "there", take_over=False)
    monkeypatch.setattr("pipeline.mirror.fetch.time.time", lambda: 1e11)  # no sign of life since
    bring(location, tmp_path / "there", take_over=False)
    bring(location, tmp_path / "third", take_over=True)


def test_a_snapshot_of_another_version_is_left_as_it_is(run_dir: Path, location: str):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    [newer] = Path(location).glob(f"*/*/{SNAPSHOT_NAME}")
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 2'))
    worker.complete(run_dir)
    assert newer.exists()
    assert len(list(Path(location).glob(f"*/*/{SNAPSHOT_NAME}"))) == 2
