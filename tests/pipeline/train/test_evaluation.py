"""Evaluations that were interrupted, or are made beside the training: they give the numbers of the default mode."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config.checks import check
from pipeline.engine.distributed import World
from pipeline.run import directory as run_directory
from pipeline.run.evaluations import awaiting, begin_try, count_tries, describe_problems
from pipeline.run.files import durable_step, read_evaluations, read_events, read_metrics, step_name
from pipeline.run.status import read_status
from pipeline.status.show import format_run
from pipeline.tasks import find_task
from pipeline.train import late_evaluation
from pipeline.train.completion import complete
from pipeline.train.evaluation_task import EvaluationTask
from pipeline.train.late_evaluation import MAX_TRIES
from pipeline.train.model import build_model
from pipeline.train.validation import Evaluator
from pipeline.weights.card import WEIGHTS_NAME, is_exported, load_model_card
from tests.support import REPOSITORY
from tests.support.attempts import FINISHED, INTERRUPTED, RunningAttempt
from tests.support.ranks import free_port, run_ranks
from tests.support.small_shards import CLASSES, config, pack

STEPS, EVERY = 4, 2
BESIDE = {"cluster": "local", "name": "evaluate", "resources": {"tasks_per_node": 2}}
"""`config.json` of a run whose checkpoints are evaluated by jobs."""


def evaluate_until(world: World, folder: str, stops: tuple[int | None, ...]) -> list[tuple[int, bool]]:
    """Evaluate; rank 0 is asked to stop while its batch of each number in `stops` is computed.

    Returns:
        Batches of each evaluation, and whether it came to its end.
    """
    settings = config(Path(folder), Path(folder) / "cache")
    type(find_task(settings.task)).evaluation_batch = 2
    batches: list[int] = []
    evaluator = Evaluator(settings, world, Path(folder), ["class"] * CLASSES, lambda: batches.append(1))
    state, ends = build_model(settings, CLASSES).state_dict(), []
    for stop_at in stops:
        batches.clear()
        scores = evaluator(state, 1, lambda stop_at=stop_at: world.rank == 0 and len(batches) == stop_at)
        ends.append((len(batches), scores is not None))
    return ends


def test_all_ranks_stop_after_the_batch_in_which_one_is_asked_to(tmp_path: Path):
    pack(tmp_path, (11,), split="validation")
    pack(tmp_path, (8,))
    assert run_ranks(evaluate_until, 2, str(tmp_path), (None, 2)) == [[(3, True), (2, False)]] * 2


def scored(run_dir: Path) -> list[dict[str, Any]]:
    """What the records of the steps hold that must not depend on interruptions."""
    return [
        {key: value for key, value in record.items() if key in ("step", "loss", "lr") or key.startswith("eval_")}
        for record in read_metrics(run_dir)
    ]


def prepare(folder: Path, name: str, *, save_every: int = 100, **facts: Any) -> Path:
    """A new run directory in a folder, over the same shards as the others there."""
    shards = folder / "shards"
    if not shards.exists():
        pack(shards, (24, 24))
        pack(shards, (24,), split="validation")
    short = config(
        shards, folder / "cache", steps=STEPS, precision="fp32", eval_every_steps=EVERY, save_every_steps=save_every
    )
    facts = {"tracking_uri": "sqlite:///none.db", "total_steps": STEPS, **facts}
    run_directory.prepare(folder / name, check(short, 2), facts)
    return folder / name


def train(run_dir: Path, outcome: int = FINISHED, **options: Any) -> None:
    with RunningAttempt(run_dir, **options) as attempt:
        assert attempt.wait() == [outcome] * 2, attempt.output()[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The run that evaluates in the default mode, and is not interrupted."""
    train(prepare(folder, "whole"))
    return folder / "whole"


def assert_equal(run_dir: Path, whole: Path) -> None:
    """Assert that a run ends with the numbers and weights of the other one."""
    assert scored(run_dir) == scored(whole)
    weights = [(each / "export" / WEIGHTS_NAME).read_bytes() for each in (run_dir, whole)]
    assert weights[0] == weights[1]
    assert load_model_card(run_dir / "export").scores == load_model_card(whole / "export").scores
    assert CheckpointStore(run_dir).steps() == CheckpointStore(whole).steps()


@pytest.mark.thorough
@pytest.mark.parametrize("step", [EVERY, STEPS])
def test_an_interrupted_evaluation_is_made_up_for_with_the_same_numbers(folder: Path, whole: Path, step: int):
    run_dir = prepare(folder, f"interrupted-{step}")
    # A look in each step, and in each evaluation one after its only batch and one at its end.
    train(run_dir, INTERRUPTED, stop_at=step + 2 * (step // EVERY) - 1)
    assert durable_step(run_dir) == step
    assert not is_exported(run_dir)
    assert scored(run_dir)[step - 1].keys() == {"step", "loss", "lr"}
    train(run_dir)
    assert list(read_evaluations(run_dir)) == [step]
    evaluated = [event["step"] for event in read_events(run_dir) if event["event"] == "evaluate"]
    assert evaluated == sorted([EVERY, STEPS, step])
    assert_equal(run_dir, whole)


def evaluate_beside(world: World, run_dir: str, ports: tuple[int, int]) -> list[tuple[str, list[int], int]]:
    """Run an evaluation job's task twice, the first time until it is asked to stop; return how each ended."""
    # The task makes a process group of its own.
    dist.destroy_process_group()
    task, ends = EvaluationTask(Path(run_dir)), []
    for port, stop_at in zip(ports, (3, None), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        looks: list[int] = []
        outcome = task(lambda looks=looks, stop_at=stop_at: looks.append(1) or len(looks) == stop_at)
        ends.append((outcome.value, awaiting(task.run_dir), count_tries(task.run_dir)))
    return ends


@pytest.mark.thorough
def test_evaluations_beside_the_training_give_the_same_numbers(
    folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    # Its import takes longer than all else, and the registration reports that it failed.
    monkeypatch.setitem(sys.modules, "mlflow", None)
    run_dir = prepare(folder, "beside", evaluation=BESIDE)
    train(run_dir)
    assert awaiting(run_dir) == [EVERY, STEPS]
    assert not any(event["event"] == "evaluate" for event in read_events(run_dir))
    assert load_model_card(run_dir / "export").scores == {}
    assert not complete(run_dir)
    # The newest comes first. An evaluation that is interrupted is no try that failed.
    ends, _ = run_ranks(evaluate_beside, 2, str(run_dir), (free_port(), free_port()))
    assert ends == [("interrupted", [EVERY], 0), ("finished", [], 0)]
    assert complete(run_dir)
    assert_equal(run_dir, whole)


@pytest.mark.thorough
def test_an_evaluation_whose_checkpoint_cannot_be_saved_is_due_at_the_next_save(folder: Path):
    run_dir = prepare(folder, "unsaved", save_every=10, evaluation=BESIDE)
    checkpoints = CheckpointStore(run_dir)
    checkpoints.folder.mkdir()
    checkpoints.partial(EVERY).write_text("a file where the save needs a folder")
    train(run_dir)
    assert awaiting(run_dir) == [EVERY + 1, STEPS]


def evaluate_all(world: World, run_dir: str) -> str:
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(free_port())
    late_evaluation.REREAD_S = 0.0
    return EvaluationTask(Path(run_dir))(lambda: False).value


@pytest.mark.thorough
def test_what_cannot_be_evaluated_is_named_and_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    run_dir = prepare(folder, "damaged", evaluation=BESIDE)
    train(run_dir)
    damaged = CheckpointStore(run_dir).folder / step_name(EVERY) / "rank_00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for _ in range(MAX_TRIES):
        begin_try(run_dir, STEPS)
    assert run_ranks(evaluate_all, 1, str(run_dir)) == ["finished"]
    named = describe_problems(run_dir)
    assert [problem.partition(": ")[0] for problem in named] == [
        f"step {step} is not evaluated" for step in (EVERY, STEPS)
    ]
    assert "bytes instead of" in named[0]
    assert named[1].endswith(f"{MAX_TRIES} evaluations of it did not come to their end")
    assert complete(run_dir)
    assert [row for row in format_run(read_status(run_dir), time.time()) if "is not evaluated" in row]


def start(run_dir: Path) -> "subprocess.Popen[str]":
    """Start an attempt under torchrun, with all its processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), "-m", "pipeline.train", str(run_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "SLURM_CONF": "/nowhere"}
    return subprocess.Popen(
        command, cwd=run_dir.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_what_no_job_can_evaluate_is_evaluated_at_the_end(folder: Path, whole: Path):
    uri = f"sqlite:///{folder}/mlflow.db"
    run_dir = prepare(folder, "refused", evaluation=BESIDE | {"cluster": "slurm"}, tracking_uri=uri)
    output = start(run_dir).communicate()[0]
    assert output.count("no evaluation job can be submitted from here") == 1, output
    assert (run_dir / "registered.json").exists(), output
    assert_equal(run_dir, whole)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_is_named_and_repeated(folder: Path, whole: Path):
    uri = f"sqlite:///{folder}/mlflow.db"
    run_dir = prepare(folder, "killed", evaluation=BESIDE, tracking_uri=uri)
    process = start(run_dir)
    limit = time.monotonic() + 200
    while not (killed := evaluating(run_dir)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(killed[0], signal.SIGKILL)
    output = process.communicate()[0]
    assert "is failed: " in output, output
    assert "SIGKILL" in output, output
    assert (run_dir / "registered.json").exists(), output
    assert_equal(run_dir, whole)


def evaluating(run_dir: Path) -> list[int]:
    """Ids of the processes that evaluate."""
    words = f"jobs.rank\0{run_dir}/evaluations/submitit".encode()
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if words in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
