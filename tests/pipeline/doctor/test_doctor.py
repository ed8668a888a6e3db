"""What the doctor finds here, and what it says of a place where a training would fail."""

import errno
import re

import pytest

from jobs import NodeGroup
from pipeline.doctor import advice
from pipeline.doctor.command import main
from pipeline.doctor.tracking import EXPERIMENT
from pipeline.tracking.client import open_client


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def levels(output: str) -> set[str]:
    return set(re.findall(r"^  (ok|warning|problem) ", output, re.MULTILINE))


def test_a_healthy_place_has_no_problem_and_stays_as_it_was(tmp_path, capsys):
    assert main() == 0
    output = capsys.readouterr().out
    assert "problem" not in levels(output)
    for words in ("torch 2.", "the JPEG decoder gives a crop", "files can be locked there", "MB/s written"):
        assert words in output
    assert output.splitlines()[-3].startswith("    python -m pipeline.launch --recipe demo")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_store_that_answers_takes_a_run_which_is_deleted(tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_client(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main() == 0
    assert re.search(r"  ok       MLflow at sqlite:.* takes runs \(\d+\.\d s for one\)", capsys.readouterr().out)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert client.search_runs([experiment.experiment_id]) == []


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:9", r"MLflow at http://127\.0\.0\.1:9 takes no run: .*Connection refused.*--sync"),
        ("/data/mlruns", r"MLFLOW_TRACKING_URI /data/mlruns is a folder, .*; a launch refuses it"),
    ],
)
def test_a_store_that_does_not_is_a_problem(uri, words, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main() == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  problem")]
    assert re.search(words, line), line


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(runs=tmp_path / "file" / "runs") == 1
    assert "file/runs cannot be made: Not a directory; choose another folder with --runs" in capsys.readouterr().out


def test_a_file_system_without_locks_is_a_problem_and_its_speed_is_measured_all_the_same(monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert main() == 1
    output = capsys.readouterr().out
    assert "  problem  files cannot be locked there (No locks available): on Lustre ask for" in output
    assert "MB/s written" in output


def group(partition: str, **changes) -> NodeGroup:
    values = {"is_up": True, "is_default": False, "nodes": 4, "cpus": 64, "memory_mb": 2**19, "gpus": 0}
    return NodeGroup(
        **(values | {"partition": partition, "limit_min": None, "features": frozenset()} | changes)  # pyright: ignore
    )


def test_the_advice_asks_for_the_partition_with_most_gpus():
    groups = [
        group("cpu", is_default=True, nodes=90),
        group("gpu", nodes=16, gpus=8),
        group("off", gpus=16, is_up=False),
    ]
    *_, train = advice.commands(groups, has_gpus=False)
    assert "--cluster slurm --nodes 4 --partition gpu --gpus-per-node 8 " in train
    assert "--cluster local" in advice.commands(groups, has_gpus=False)[0]
    assert not any("slurm" in line for line in advice.commands([], has_gpus=True))
