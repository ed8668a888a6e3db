"""Run directories with checkpoints of a few bytes, and what a mirror holds of them."""

import hashlib
import json
from pathlib import Path

from pipeline.checkpoint.store import CheckpointStore, rank_file_name
from pipeline.config.schema import DataConfig, ModelConfig, TrainConfig
from pipeline.mirror.claim import use_mirror
from pipeline.mirror.copier import Copier
from pipeline.mirror.fetch import fetch_run
from pipeline.mirror.layout import owners, snapshots
from pipeline.mirror.place import Place
from pipeline.run.files import MANIFEST_NAME, step_name
from pipeline.run.mirror_files import read_target
from tests.support.tracking_runs import config_json

RANKS = 2
SECRET = "s3://key:hunter2@bucket/shards"


def new_run(run_dir: Path) -> Path:
    """A run directory without a checkpoint, whose shards have a secret in their address."""
    config = TrainConfig(steps=900, model=ModelConfig(name="transxnet_n"), data=DataConfig(shards=SECRET))
    config_json(run_dir, config, None)
    (run_dir / "notify.json").write_text('{"address": "https://chat/SECRET"}')
    return run_dir


def publish(run_dir: Path, step: int, top1: float | None = None) -> None:
    """Publish a checkpoint of two ranks, whose journal reaches its step."""
    store = CheckpointStore(run_dir)
    partial = store.partial(step)
    partial.mkdir(parents=True)
    for rank in range(RANKS):
        content = f"state of rank {rank} after step {step}".encode() * 50
        name = rank_file_name(rank)
        (partial / name).write_bytes(content)
        (partial / f"{name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()} {len(content)}")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time": 1_700_000_000.0 + step, "loss": 1 / step}) + "\n")
    metric = {"metric": None} if top1 is None else {"metric": "top1", "metric_value": top1}
    store.publish(step, {"world_size": RANKS, **metric})


def mirror(run_dir: Path, location: str) -> Copier:
    """Claim a mirror for a run; return what copies to it."""
    use_mirror(run_dir, location)
    target = read_target(run_dir)
    assert target is not None
    return Copier(run_dir, target)


def copy_all(copier: Copier) -> None:
    """Copy until nothing is missing."""
    while not copier.copy_next():
        pass


def bring(location: str, run_dir: Path, *, take_over: bool = True) -> list[str]:
    """Fetch a run; return what was said."""
    said: list[str] = []
    fetch_run(location, run_dir, take_over=take_over, say=said.append)
    return said


def files_below(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder, by their path from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_in(location: str) -> list[int]:
    """Steps of all complete checkpoints in a mirror, of all its owners."""
    there = Place(location)
    found = [each for owner in owners(there) for each in snapshots(there, owner)[0]]
    return sorted(each.step for each in found if not each.is_export)


def is_whole(run_dir: Path, step: int) -> bool:
    """Whether a fetched run directory has this checkpoint as it was published, and a journal that reaches it."""
    folder = run_dir / "checkpoints" / step_name(step)
    CheckpointStore(run_dir).read(step)
    wanted = {rank_file_name(rank) for rank in range(RANKS)} | {MANIFEST_NAME}
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {path.name for path in folder.iterdir()} == wanted and records[-1]["step"] >= step
