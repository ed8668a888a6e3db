"""The whole system as a user starts it: from digits to a registered model, with kills and changes of world size."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import REPOSITORY
from tests.support.listener import Listener

pytestmark = pytest.mark.timeout(900)

EXAMPLES = REPOSITORY / "tests" / "examples"


@dataclass(frozen=True)
class Workplace:
    """A folder in which a user runs commands, with MLflow's data below it."""

    folder: Path

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SLURM_", "SUBMITIT_"))}
        return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def start(self, module: str, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, module: str, *arguments: str, status: int = 0) -> str:
        process = self.start(module, *arguments)
        output, _ = process.communicate(timeout=1000)
        assert process.returncode == status, output + self.logs()
        return output

    def run_file(self, path: Path, *arguments: str) -> str:
        """What a script prints to its standard output."""
        command = [sys.executable, path, *arguments]
        return subprocess.check_output(command, cwd=self.folder, env=self.environment(), text=True, timeout=300)

    def kill_after(self, step: int, run: str, *flags: str) -> None:
        """Launch a training and kill all its processes with SIGKILL after `step` steps."""
        with self.start("pipeline.launch", *flags, "--run-dir", str(self.folder / run)):
            try:
                self.wait_for_step(run, step)
            finally:
                kill_everything_of(self.folder / run)

    def logs(self) -> str:
        return "\n".join(f"--- {p}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*/submitit/*_log.*")))

    def records(self, run: str) -> list[dict[str, Any]]:
        path = self.folder / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, run: str, step: int) -> None:
        limit = time.monotonic() + 400
        while time.monotonic() < limit:
            with contextlib.suppress(ValueError):
                if (records := self.records(run)) and records[-1]["step"] >= step:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{run} did not reach step {step}\n{self.logs()}")


def kill_everything_of(run: Path) -> None:
    """Send SIGKILL to every process whose command line names the run."""
    for _ in range(3):
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                if str(run).encode() in command and int(process.name) != os.getpid():
                    os.kill(int(process.name), signal.SIGKILL)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("work"))


SHORT_STEPS = 24
SHORT_DEMO = ("--recipe", "demo", "--train.steps", str(SHORT_STEPS), "--train.save-every-steps", "5")
"""The demo with a seventh of its steps, which reaches a top-1 of 0.77."""
KILLED_AT = 7
"""Step after which the demo is killed."""


@pytest.fixture(scope="module")
def told() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


@pytest.fixture(scope="module")
def demo(workplace: Workplace, told: Listener) -> str:
    """Output of the demo, which traces two steps and tells how it went."""
    flags = ["--train.profile", "2", "--notify", told.address]
    return workplace.run("pipeline.launch", *SHORT_DEMO, "--run-dir", str(workplace.folder / "demo"), *flags)


@pytest.fixture(scope="module")
def killed_demo(workplace: Workplace) -> None:
    """A run `killed` of the demo, whose first launch was killed shortly after a checkpoint."""
    workplace.kill_after(KILLED_AT, "killed", *SHORT_DEMO)
    assert workplace.records("killed")[-1]["step"] < SHORT_STEPS
    workplace.run("pipeline.launch", *SHORT_DEMO, "--run-dir", str(workplace.folder / "killed"))
    assert {r["attempt"] for r in workplace.records("killed")} == {1, 2}


@pytest.mark.thorough
def test_demo_ends_with_a_registered_model(workplace: Workplace, demo: str, told: Listener):
    run = workplace.folder / "demo"
    card = json.loads((run / "export" / "model.json").read_text())
    assert card["top1"] >= 0.65
    assert card["validation_samples"] == 360
    records = workplace.records("demo")
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    assert {"step", "time", "attempt", "loss", "lr"} <= records[0].keys()
    assert oct((run).stat().st_mode & 0o777) == "0o700"
    assert "models:/transxnet_n/1 (@latest, @champion)" in demo
    for words in (str(run), "mlflow ui", "pipeline.evaluate", "load_model"):
        assert words in demo
    assert [(post["event"], post["registered"]) for post in told.posts] == [
        ("champion", "models:/transxnet_n/1"),
        ("finished", "models:/transxnet_n/1"),
    ]


@pytest.mark.thorough
@pytest.mark.usefixtures("demo")
def test_the_demos_trace_has_two_steps_of_each_rank_and_is_in_mlflow(workplace: Workplace):
    import mlflow

    names = [f"step_00000011_rank_0000{rank}.json.gz" for rank in range(2)]
    for name in names:
        with gzip.open(workplace.folder / "demo" / "profile" / name, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        steps = sorted(event["name"] for event in events if event["name"].startswith("ProfilerStep"))
        assert steps == ["ProfilerStep#10", "ProfilerStep#11"]
        assert any(event["name"] == "aten::conv2d" for event in events)
    client = mlflow.MlflowClient(f"sqlite:///{workplace.folder}/runs/mlflow.db")
    [run] = client.search_runs(["1"], "attributes.run_name = 'demo'")
    assert [item.path for item in client.list_artifacts(run.info.run_id, "profile")] == [f"profile/{n}" for n in names]


@pytest.mark.thorough
@pytest.mark.usefixtures("killed_demo")
def test_both_attempts_are_one_mlflow_run_with_each_step_once(workplace: Workplace):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{workplace.folder}/runs/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    [run] = client.search_runs(experiments, "attributes.run_name = 'killed'")
    assert run.info.status == "FINISHED"
    history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss"))
    assert history == [(r["step"], r["loss"]) for r in workplace.records("killed")]
    assert [step for step, _ in history] == list(range(1, SHORT_STEPS + 1))


@pytest.mark.thorough
def test_the_example_classifies_with_the_registered_model(workplace: Workplace, demo: str):
    image = workplace.folder / "digit.png"
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(image)
    *classes, parameters = workplace.run_file(EXAMPLES / "classify.py", str(image)).splitlines()
    probabilities = [float(line.split()[1]) for line in classes]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert parameters == "1,031,886 parameters"


@pytest.mark.slow
def test_the_whole_demo_recognises_digits(workplace: Workplace):
    workplace.run("pipeline.launch", "--recipe", "demo", "--run-dir", str(workplace.folder / "full"))
    card = json.loads((workplace.folder / "full" / "export" / "model.json").read_text())
    assert card["top1"] >= 0.95


@pytest.mark.slow
def test_the_segmentation_demo_begins_from_the_demos_champion(workplace: Workplace, demo: str):
    run = workplace.folder / "scenes"
    output = workplace.run("pipeline.launch", "--recipe", "demo_segmentation", "--run-dir", str(run))
    card = json.loads((run / "export" / "model.json").read_text())
    assert (card["task"], card["metric"]) == ("segmentation", "miou")
    assert card["miou"] >= 0.7
    assert json.loads((run / "config.json").read_text())["train"]["initialise_from"] == "models:/transxnet_n/1"
    assert "models:/semantic_fpn_n/1 (@latest, @champion)" in output
    for words in (str(run), "mlflow ui", "pipeline.evaluate", "load_model"):
        assert words in output
    assert (run / "report" / "samples.png").exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("demo", "killed_demo")
def test_killed_and_resumed_has_the_weights_of_the_uninterrupted_run(workplace: Workplace):
    for name in ("step", "loss", "lr", "grad_norm"):
        assert [r[name] for r in workplace.records("killed")] == [r[name] for r in workplace.records("demo")]
    weights = [workplace.folder / name / "export" / "model.safetensors" for name in ("killed", "demo")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_resume_with_other_world_sizes_keeps_the_order(workplace: Workplace, demo: str):
    """A run on 1, 2, then 4 processes under ZeRO stages 1, 0, 3, killed between, reads each sample of an epoch once."""
    from pipeline.data.audit import read_audit

    run = workplace.folder / "elastic"
    steps, batch = 24, 64
    training = ["--recipe", "demo", "--train.steps", str(steps), "--train.micro-batch-size", "16"]
    training += ["--train.save-every-steps", "5", "--train.audit-samples"]
    alone = ["--tasks-per-node", "1", "--run-dir", str(workplace.folder / "alone")]
    workplace.run("pipeline.launch", *training, *alone)
    for processes, stage, until in ((1, 1, 7), (2, 0, 14)):
        flags = ["--tasks-per-node", str(processes), "--train.zero-stage", str(stage)]
        workplace.kill_after(until, "elastic", *training, *flags)
    common = [*training, "--run-dir", str(run)]
    workplace.run("pipeline.launch", *common, "--tasks-per-node", "4", "--train.zero-stage", "3")

    records = workplace.records("elastic")
    assert [r["step"] for r in records] == list(range(1, steps + 1))
    losses = [r["loss"] for r in workplace.records("alone")]
    # A micro-batch has the same 16 images in all cases, so only the order of sums differs.
    assert [r["loss"] for r in records] == pytest.approx(losses, rel=1e-4)
    audit = read_audit(run)
    order = audit.sort_by([("step", "ascending")])["sample"].to_pylist()
    assert len(order) == steps * batch
    epochs = audit["epoch"].to_numpy()
    samples = audit["sample"].to_numpy()
    assert sorted(samples[epochs == 0]) == list(range(1437)), "the epoch was not read exactly once"
    assert len(set(samples[epochs == 1])) == (epochs == 1).sum() == steps * batch - 1437
    assert len(set(audit["rank"].to_pylist())) == 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_compiled_training_follows_the_plain_one(workplace: Workplace):
    """On a CPU, compiling takes minutes; the result is exported and registered like any other."""
    training = ["--recipe", "demo", "--train.steps", "3", "--tasks-per-node", "1"]
    for name, flags in (("plain", []), ("compiled", ["--train.compile"])):
        workplace.run("pipeline.launch", *training, *flags, "--run-dir", str(workplace.folder / name))
    for value in ("loss", "grad_norm"):
        plain, compiled = ([r[value] for r in workplace.records(name)] for name in ("plain", "compiled"))
        assert compiled == pytest.approx(plain, rel=1e-3), value
    assert (workplace.folder / "compiled" / "registered.json").exists()


@pytest.mark.slow
def test_a_rank_that_aborts_and_ctrl_c_during_the_registration_leave_a_registered_model(workplace: Workplace):
    (workplace.folder / "sitecustomize.py").write_text(
        "import atexit, os\nif os.environ.get('SUBMITIT_LOCAL_GLOBALID') == '1':\n    atexit.register(os.abort)\n"
    )
    run = workplace.folder / "ending"
    setup = ["--setup", f"export PYTHONPATH={workplace.folder}:$PYTHONPATH"]
    launcher = workplace.start(
        "pipeline.launch", "--recipe", "demo", "--train.steps", "8", "--run-dir", str(run), *setup
    )
    limit = time.monotonic() + 400
    while not (run / "export" / "model.json").exists():
        assert time.monotonic() < limit, workplace.logs()
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output + workplace.logs()
    assert "asked the 2 processes to save and stop" in output
    assert (run / "registered.json").exists()


@pytest.mark.thorough
def test_a_finished_run_is_not_trained_again(workplace: Workplace, demo: str):
    before = (workplace.folder / "demo" / "metrics.jsonl").read_bytes()
    output = workplace.run("pipeline.launch", *SHORT_DEMO, "--run-dir", str(workplace.folder / "demo"))
    assert "models:/transxnet_n/1" in output
    assert (workplace.folder / "demo" / "metrics.jsonl").read_bytes() == before


def test_wrong_input_is_one_line(workplace: Workplace):
    output = workplace.run("pipeline.launch", "--train.data.shards", "nowhere", "--cluster", "local", status=2)
    assert output.startswith("error: ")
    assert "nowhere" in output
    assert "Traceback" not in output
    assert "sharding.build" in output
    assert not (workplace.folder / "nowhere").exists()
