"""What a run gets from its mirror beside its newest checkpoint: scores, the best one, and records that are newer."""

import contextlib
import errno
import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from pipeline.mirror import worker
from pipeline.mirror.claim import use_mirror
from pipeline.mirror.handle import Mirror
from pipeline.mirror.layout import Snapshot
from pipeline.mirror.place import MirrorError, Place
from pipeline.run.evaluations import write_evaluation
from pipeline.run.files import checkpoints, read_evaluations
from pipeline.run.mirror_files import INTERRUPTED_S, read_progress
from pipeline.run.time_to_save import TimeToSave
from pipeline.tracking.state import TrackingState, load_state, read_state, save_state
from tests.support.mirrored_runs import bring, copy_all, is_whole, mirror, publish


def test_the_best_checkpoint_is_that_of_the_later_scores(run_dir: Path, location: str):
    copier = mirror(run_dir, location)
    for step, top1 in ((100, 0.9), (200, 0.5)):
        publish(run_dir, step)
        copy_all(copier)
        write_evaluation(run_dir, step, {"top1": top1}, seconds=1.0)
    publish(run_dir, 300)
    copy_all(copier)
    there = run_dir.with_name("there")
    bring(location, there)
    assert sorted(checkpoints(there)) == [100, 300]
    # Those of the older snapshots, which had fewer, replace none.
    assert read_evaluations(there) == read_evaluations(run_dir)


def test_records_of_an_attempt_that_has_saved_nothing_are_brought_too(run_dir: Path, location: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    state = TrackingState(key="k", run_id="abc", tracking_uri="http://server:5000", senders=["one"])
    save_state(run_dir, state)
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    state.senders.append("two")
    save_state(run_dir, state)
    (run_dir / "attempts.jsonl").write_text('{"event": "start", "attempt": 2, "time": 1.0}\n')
    use_mirror(run_dir, location)
    worker.follow(run_dir, lambda _: True)
    there = run_dir.with_name("there")
    bring(location, there)
    brought = read_state(there)
    assert brought is not None
    assert (brought.run_id, brought.senders) == ("abc", ["one", "two"])
    assert (there / "attempts.jsonl").read_bytes() == (run_dir / "attempts.jsonl").read_bytes()


def test_a_run_whose_server_never_answered_is_not_bound_to_it(run_dir: Path, location: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    save_state(run_dir, TrackingState(key="k", tracking_uri="http://server:5000"))
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    bring(location, run_dir.with_name("there"))
    state = read_state(run_dir.with_name("there"))
    assert state is not None
    assert state.tracking_uri is None


def test_a_checkpoint_that_is_removed_while_it_is_brought_gives_way_to_a_newer_one(
    run_dir: Path, location: str, monkeypatch
):
    publish(run_dir, 100)
    copier = mirror(run_dir, location)
    copy_all(copier)
    chunks, removed = Place.chunks, []

    def trains_on(self: Place, name: str):
        if name.endswith("rank_00001.safetensors") and not removed:
            removed.append(name)
            publish(run_dir, 200)
            shutil.rmtree(run_dir / "checkpoints" / "step_00000100")
            copy_all(copier)
        return chunks(self, name)

    monkeypatch.setattr(Place, "chunks", trains_on)
    said = bring(location, run_dir.with_name("there"))
    assert removed
    assert "step 200" in said[-1]
    assert is_whole(run_dir.with_name("there"), 200)


def test_a_damaged_export_leaves_no_record_behind(run_dir: Path, location: str):
    publish(run_dir, 900)
    (run_dir / "export").mkdir()
    (run_dir / "export" / "model.safetensors").write_bytes(b"weights" * 99)
    (run_dir / "export" / "model.json").write_text('{"step": 900}')
    copier = mirror(run_dir, location)
    assert not copier.copy_next()
    (run_dir / "registered.json").write_text('{"name": "model"}')
    copy_all(copier)
    [weights] = Path(location).glob("*/export-*/export/model.safetensors")
    weights.write_bytes(b"damaged")
    bring(location, run_dir.with_name("there"))
    assert not (run_dir.with_name("there") / "registered.json").exists()
    # The weights are copied also where no checkpoint is left.
    shutil.rmtree(run_dir / "checkpoints")
    other = mirror(run_dir, f"{location} 2")
    copy_all(other)
    assert list(Path(f"{location} 2").glob("*/export-*"))


def test_a_full_disk_here_is_not_an_error_of_the_mirror(run_dir: Path, location: str, monkeypatch):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))

    class Full:
        def __init__(self, file) -> None:
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self._file.close()

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    there = run_dir.with_name("there")

    def open_full(self: Path, mode: str = "r", **others):
        file = opened(self, mode, **others)
        return Full(file) if mode == "wb" and ".there.fetching" in str(self) else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(MirrorError, match=r"/\.there\.fetching/.* cannot be written: .*No space left"):
        bring(location, there)
    assert not list(there.parent.glob(".there*"))


def test_a_process_that_another_one_keeps_waiting_says_so_and_ends_with_the_attempt(
    run_dir: Path, location: str, monkeypatch, capfd
):
    publish(run_dir, 100)
    use_mirror(run_dir, location)
    waits: list[float] = []

    def is_over(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 20

    monkeypatch.setattr(worker, "LOCK_PATIENCE_S", 0.1)
    with worker._alone(run_dir, lambda _: True) as is_alone:
        assert is_alone
        worker.follow(run_dir, is_over)
        with pytest.raises(MirrorError, match="another process copies"):
            worker.complete(run_dir)
    assert len(waits) == 21
    assert capfd.readouterr().err.count("another process copies") == 1
    assert read_progress(run_dir).step is None


@pytest.mark.thorough  # a process
def test_what_a_finished_run_gets_later_is_copied_too(run_dir: Path, location: str):
    publish(run_dir, 900)
    (run_dir / "export").mkdir()
    (run_dir / "export" / "model.json").write_text('{"step": 900}')
    copy_all(mirror(run_dir, location))
    (run_dir / "registered.json").write_text('{"name": "model"}')
    Mirror.complete(run_dir)
    [snapshot] = Path(location).glob("*/export-*")
    files = Snapshot(Place(location), str(snapshot.relative_to(location))).content["files"]
    assert "registered.json" in files


def test_the_time_to_save_counts_the_mirror(run_dir: Path, location: str):
    lines = [{"step": step, "time": time.time(), "step_s": 1.0} for step in range(9)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "attempts.jsonl").write_text('{"event": "saved", "attempt": 1, "time": 1.0, "seconds": 2.0}\n')
    assert TimeToSave.of_run(run_dir).seconds == 3.0
    use_mirror(run_dir, location)
    assert TimeToSave.of_run(run_dir).seconds == 3.0 + INTERRUPTED_S


def test_it_goes_on_in_the_same_mlflow_run_if_the_server_is_the_same(run_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    save_state(run_dir, TrackingState(key="k", run_id="abc", tracking_uri="http://server:5000", shipped_step=90))
    publish(run_dir, 100)
    copy_all(mirror(run_dir, str(tmp_path / "mirror")))
    bring(str(tmp_path / "mirror"), tmp_path / "there")
    state = load_state(tmp_path / "there")
    assert state is not None
    assert (state.run_id, state.shipped_step) == ("abc", 90)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    bring(str(tmp_path / "mirror"), tmp_path / "third")
    state = load_state(tmp_path / "third")
    assert state is not None
    assert (state.run_id, state.shipped_step, state.links) == (None, -1, {"handed_over_from": "abc"})
    # A database of the same path is asked whether it knows the run.
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    save_state(run_dir, TrackingState(key="k", run_id="abc", tracking_uri=uri))
    copy_all(mirror(run_dir, str(tmp_path / "second mirror")))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("create table runs (run_uuid text)")
        bring(str(tmp_path / "second mirror"), tmp_path / "fourth")
        database.execute("insert into runs values ('abc')")
        database.commit()
        bring(str(tmp_path / "second mirror"), tmp_path / "fifth")
    states = [load_state(tmp_path / name) for name in ("fourth", "fifth")]
    assert [state and state.run_id for state in states] == [None, "abc"]
