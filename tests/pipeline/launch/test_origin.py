"""A run whose checkpoints are gone is refused or begins again; a copied run has an MLflow run of its own."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.launch.checks import check_start
from pipeline.launch.micro_batch import kept_micro_batch
from pipeline.launch.options import LaunchError, LaunchOptions, parse
from pipeline.launch.origin import adopt_copy, begin_again
from pipeline.launch.plan import build_plan
from pipeline.launch.run import prepare_run
from pipeline.run.config import read_config
from pipeline.run.lost_checkpoints import describe_lost_checkpoints
from pipeline.run.micro_batch import FoundMicroBatch, write_micro_batch
from pipeline.status.sync import sync_run
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from pipeline.tracking.state import load_state
from tests.pipeline.tracking.runs import history, new_run
from tests.support.small_shards import pack
from tests.support.tracking_runs import append_event, append_records, new_store, write_checkpoint


def trained(folder: Path, uri: str, name: str = "run") -> Path:
    """A run of six steps, tracked, with a checkpoint of its last."""
    run_dir, _ = new_run(folder, uri, name)
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    append_records(run_dir, range(1, 7))
    append_event(run_dir, "saved", 1, 6, step=6)
    write_checkpoint(run_dir, 6)
    sync_run(run_dir)
    return run_dir


@pytest.mark.thorough
def test_a_run_whose_checkpoints_are_gone_is_refused_and_begins_again_beside_what_it_was(tmp_path: Path):
    uri = new_store(tmp_path)
    run_dir = trained(tmp_path, uri)
    config = read_config(run_dir).train
    first = load_state(run_dir).run_id
    check_start(run_dir, config, LaunchOptions())
    shutil.rmtree(run_dir / "checkpoints")
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    with pytest.raises(LaunchError) as refused:
        check_start(run_dir, config, LaunchOptions())
    assert "metrics.jsonl has steps to 6, step 6 was saved, no checkpoint is left: put " in str(refused.value)
    assert "--begin-again" in str(refused.value)
    check_start(run_dir, config, LaunchOptions(begin_again=True))
    former = begin_again(run_dir)
    assert former == run_dir / "former-1"
    assert {name: (former / name).read_bytes() for name in before if not name.startswith(".")} == {
        name: content for name, content in before.items() if not name.startswith(".")
    }
    assert describe_lost_checkpoints(run_dir) is None
    append_records(run_dir, range(1, 3))
    write_checkpoint(run_dir, 2)
    sync_run(run_dir)
    second = load_state(run_dir).run_id
    client = open_client(uri)
    assert (history(uri, first), history(uri, second)) == ([1, 2, 3, 4, 5, 6], [1, 2])
    assert client.get_run(second).data.tags["begun_again_from"] == first
    assert client.get_run(second).info.run_name == "run (begun again)"
    # Once more, beside the first time.
    append_event(run_dir, "saved", 1, 6, step=2)
    shutil.rmtree(run_dir / "checkpoints")
    assert begin_again(run_dir) == run_dir / "former-2"


def test_a_run_that_begins_again_finds_its_micro_batch_anew(tmp_path: Path):
    run_dir, _ = new_run(tmp_path, None, micro_batch_size="auto")
    found = FoundMicroBatch(micro_batch_size=6, world_size=2)
    write_micro_batch(run_dir, found)
    append_event(run_dir, "start", 1, 0, step=0, world_size=2)
    for options in (LaunchOptions(), LaunchOptions(begin_again=True)):
        assert kept_micro_batch(run_dir, options) == found
    append_event(run_dir, "saved", 1, 6, step=6)
    assert kept_micro_batch(run_dir, LaunchOptions()) == found
    assert kept_micro_batch(run_dir, LaunchOptions(begin_again=True)) is None


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on(run_dir: Path):
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    append_records(run_dir, range(1, 4))
    assert describe_lost_checkpoints(run_dir) is None
    assert describe_lost_checkpoints(run_dir, is_verified=True) is None
    # Of a partial copy without the attempt log nobody knows.
    (run_dir / "attempts.jsonl").unlink()
    assert "metrics.jsonl has steps to 3, no checkpoint is left" in (describe_lost_checkpoints(run_dir) or "")


def test_a_launch_begins_again_where_every_checkpoint_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pack(tmp_path / "shards", (17, 9))
    pack(tmp_path / "shards", (5,), split="validation")
    words = ["--cluster", "debug", "--run-dir", f"{tmp_path}/run", "--train.data.shards", f"{tmp_path}/shards"]

    def prepare(*flags: str) -> None:
        plan = build_plan(parse([*words, *flags]))
        prepare_run(plan, plan.runs[0])

    prepare()
    append_event(tmp_path / "run", "saved", 1, 6, step=6)
    write_checkpoint(tmp_path / "run", 6)
    prepare()
    prepare("--begin-again")
    assert f"{tmp_path}/run begins again, in an MLflow run of its own" in capsys.readouterr().out
    assert (tmp_path / "run/former-1/checkpoints/step_00000006").is_dir()
    prepare("--begin-again")
    assert "begins again" not in capsys.readouterr().out


@pytest.mark.thorough
def test_of_two_copies_that_do_not_see_each_other_the_second_to_go_on_gets_a_run_of_its_own(tmp_path: Path, caplog):
    uri = new_store(tmp_path)
    here, there = trained(tmp_path, uri), tmp_path / "there"
    attempt(here, range(7, 9))
    first = load_state(here).run_id
    shutil.copytree(here, there)
    # As on another host, whose folder has no original there.
    forget_inode(there)
    assert load_state(there).run_id == first
    attempt(there, range(9, 11))
    assert load_state(there).run_id == first
    caplog.clear()
    attempt(here, range(9, 12))
    second = load_state(here).run_id
    assert f"MLflow run {first} was continued by {there}: {here} gets an MLflow run of its own" in caplog.text
    client = open_client(uri)
    assert client.get_run(second).data.tags["copied_from"] == first
    assert (history(uri, first), history(uri, second)) == (list(range(1, 11)), list(range(1, 12)))
    # Both go on where they are, also after an attempt of which the server heard nothing.
    Shipper(there).begin({})
    attempt(there, range(11, 13))
    attempt(here, range(12, 13))
    assert (load_state(there).run_id, load_state(here).run_id) == (first, second)


def attempt(run_dir: Path, steps: range) -> None:
    """Do steps in an attempt of its own, and send them."""
    shipper = Shipper(run_dir)
    shipper.begin({})
    append_records(run_dir, steps)
    shipper.ship(steps[-1])


def forget_inode(run_dir: Path) -> None:
    path = run_dir / "mlflow.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inode": 0}))


def test_a_copied_run_gets_an_mlflow_run_of_its_own_and_a_moved_one_keeps_its(tmp_path: Path):
    uri = new_store(tmp_path)
    run_dir = trained(tmp_path, uri)
    first = load_state(run_dir).run_id
    copy = tmp_path / "copy"
    (run_dir / "submitit").mkdir()
    (run_dir / "submitit/submission.json").write_text(json.dumps({"cluster": "slurm", "job_id": "7"}))
    shutil.copytree(run_dir, copy)
    assert adopt_copy(run_dir) is None
    assert adopt_copy(copy) == run_dir
    assert adopt_copy(copy) is None
    # The job in the queue is the original's.
    assert not (copy / "submitit/submission.json").exists()
    assert (run_dir / "submitit/submission.json").exists()
    sync_run(copy)
    second = load_state(copy).run_id
    client = open_client(uri)
    assert client.get_run(second).data.tags["copied_from"] == first
    assert client.get_run(second).info.run_name == "copy (copy)"
    assert history(uri, second) == history(uri, first) == [1, 2, 3, 4, 5, 6]
    # Without a launch too: the training alone, and commands on the copy.
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    assert load_state(other).run_id is None
    assert load_state(run_dir).run_id == first
    run_dir.rename(tmp_path / "renamed")
    assert load_state(tmp_path / "renamed").run_id == first
    # Moved to another file system: copied, then removed.
    shutil.copytree(tmp_path / "renamed", tmp_path / "moved")
    shutil.rmtree(tmp_path / "renamed")
    assert load_state(tmp_path / "moved").run_id == first
