"""Checkpoints survive damaged files, full disks and killed writers."""

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.rank_file import RankWriter
from pipeline.checkpoint.store import CheckpointStore, DamagedCheckpointError, step_name
from pipeline.run.evaluations import AWAITS, awaiting
from pipeline.run.files import EVALUATIONS
from tests.support.ranks import forks


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {
        "buffer|count|0": torch.tensor([step]),
        "weight|a|0": torch.full((70_001,), float(step)),
        "weight|b|5": torch.arange(7, dtype=torch.float32) + step,
    }


def save(store: CheckpointStore, step: int, top1: float | None = None, *, awaits: bool = False) -> None:
    writer = RankWriter(tensors(step), rank=0)
    writer.start(store.partial(step))
    assert writer.finish() is None
    store.publish(step, {"world_size": 1, "top1": top1, AWAITS: awaits})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def test_a_saved_checkpoint_is_loaded_unchanged(store: CheckpointStore):
    save(store, 3)
    checkpoint = store.newest_valid(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.step == 3
    stored = load_file(checkpoint.rank_file(0))
    assert stored.keys() == tensors(3).keys()
    assert all(torch.equal(stored[name], value) for name, value in tensors(3).items())
    assert [p.name for p in store.folder.iterdir()] == [step_name(3)]
    assert sorted(p.name for p in checkpoint.path.iterdir()) == ["manifest.json", "rank_00000.safetensors"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_manifest(path: Path) -> None:
    (path.parent / "manifest.json").write_text('{"schema": 1')


@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, spoil_manifest])
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_restored(store: CheckpointStore, damage, damaged: int):
    for step in (1, 2, 3):
        save(store, step)
    for step in (3, 2)[:damaged]:
        damage(store.folder / step_name(step) / "rank_00000.safetensors")
        with pytest.raises(DamagedCheckpointError, match=step_name(step)):
            store.read(step)
    said: list[str] = []
    checkpoint = store.newest_valid(said.append)
    assert checkpoint is not None
    assert checkpoint.step == 3 - damaged
    assert len(said) == damaged
    assert step_name(3) in said[0]


def test_retention_keeps_the_newest_and_the_best(store: CheckpointStore):
    for step, top1 in [(1, 0.5), (2, 0.9), (3, 0.7), (4, None), (5, 0.8)]:
        save(store, step, top1)
    store.retain(2)
    assert store.steps() == [2, 4, 5]


def test_retention_keeps_those_that_await_their_evaluation_while_they_are_few(store: CheckpointStore, tmp_path: Path):
    save(store, 1, awaits=True)
    for step in (2, 3, 4):
        save(store, step)
    assert store.retain(2) == []
    assert store.steps() == [1, 3, 4]
    for step in (5, 6, 7):
        save(store, step, awaits=True)
    # The evaluations are behind: the newest ones win.
    assert store.retain(2) == [1, 5]
    assert store.steps() == [6, 7] == awaiting(tmp_path)
    # A result that comes later decides which one is the best.
    for step, top1 in ((6, 0.9), (7, 0.7)):
        result = {"step": step, "metric": "top1", "metric_value": top1}
        (tmp_path / EVALUATIONS).mkdir(exist_ok=True)
        (tmp_path / EVALUATIONS / f"{step_name(step)}.json").write_text(json.dumps(result))
    for step in (8, 9):
        save(store, step)
    assert store.retain(2) == []
    assert store.steps() == [6, 8, 9]


def test_a_full_disk_returns_an_error_and_publishes_no_checkpoint(store: CheckpointStore):
    save(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        writer = RankWriter(tensors(2), rank=0)
        writer.start(store.partial(2))
        error = writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert isinstance(error, OSError)
    store.remove_leftovers()
    assert store.steps() == [1]
    writer.start(store.partial(3))
    assert writer.finish() is None


def save_forever(folder: Path) -> None:
    """Save checkpoints without end, from the step after the newest one."""
    store = CheckpointStore(folder)
    store.remove_leftovers()
    for step in range((store.steps() or [0])[-1] + 1, 10**6):
        save(store, step)
        store.retain(3)


def test_a_killed_writer_leaves_only_valid_checkpoints(store: CheckpointStore, tmp_path: Path):
    chance = random.Random(7)
    reached = 0
    for _ in range(3):
        process = forks(__name__).Process(target=save_forever, args=(tmp_path,), daemon=True)
        process.start()
        limit = time.monotonic() + 200
        while (store.steps() or [0])[-1] <= reached and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.join()
        for step in store.steps():
            checkpoint = store.read(step)
            assert json.loads((checkpoint.path / "manifest.json").read_text())["step"] == step
            assert load_file(checkpoint.rank_file(0))["buffer|count|0"].item() == step
        assert store.steps()[-1] > reached
        reached = store.steps()[-1]
    store.remove_leftovers()
    assert all(path.name.startswith("step_") for path in store.folder.iterdir())
