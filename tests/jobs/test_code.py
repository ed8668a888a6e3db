"""The code that a job runs, and the report it starts with."""

import json
import os
import shutil
import subprocess

import jobs
from jobs.doctor import report, write
from tests.jobs.tasks import Count
from tests.jobs.test_cluster import PLACE
from tests.jobs.test_local import REPOSITORY, starts

SEATS = [("n1", "2"), ("n1", "3"), ("n2", "")]


def package(root, text="VALUE = 1\n"):
    (root / "one").mkdir(exist_ok=True, parents=True)
    (root / "one" / "__init__.py").write_text(text)
    (root / "one" / "kernel.cu").write_text("// source\n")
    (root / "one" / "x.pyc").write_text("built")


def test_snapshot_keeps_what_was_submitted(tmp_path):
    package(tmp_path / "checkout")
    code = jobs.settle(tmp_path / "checkout", ["one"], tmp_path / "run")
    package(tmp_path / "checkout", "VALUE = 2\n")
    assert (code.root / "one" / "__init__.py").read_text() == "VALUE = 1\n"
    assert sorted(path.name for path in (code.root / "one").iterdir()) == ["__init__.py", "kernel.cu"]
    assert "as submitted" in code.words()
    other = jobs.settle(tmp_path / "checkout", ["one"], tmp_path / "run")
    assert other.root != code.root


def test_without_a_snapshot_a_change_is_told(tmp_path):
    package(tmp_path)
    code = jobs.settle(tmp_path, ["one"], None)
    assert "as submitted" in code.words()
    package(tmp_path, "VALUE = 2\n")
    assert code.words().startswith(f"CHANGED since the submission: {code.digest} then, ")


def test_commit_says_where_files_differ(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    package(tmp_path)
    assert jobs.settle(tmp_path, ["one"], None).commit == ""
    git("init")
    git("add", ".")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "x")
    commit = jobs.settle(tmp_path, ["one"], None).commit
    assert len(commit) == 40
    package(tmp_path, "VALUE = 2\n")
    assert jobs.settle(tmp_path, ["one"], None).commit == f"{commit}+changes"


def test_processes_run_the_snapshot_and_not_the_folder_of_submission(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(REPOSITORY / "jobs", checkout / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    package(checkout, "def task(stop_requested):\n    raise ValueError('the submitted code')\n")
    monkeypatch.syspath_prepend(str(checkout))
    monkeypatch.chdir(checkout)
    import one  # pyright: ignore[reportMissingImports]

    code = jobs.settle(checkout, ["one", "jobs"], tmp_path / "run")
    package(checkout, "def task(stop_requested):\n    raise ValueError('the edited code')\n")
    submission = jobs.submit(
        one.task, cluster="local", folder=tmp_path / "run", resources=jobs.Resources(), name="x", code=code
    )
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert "the submitted code" in submission.failure()


def test_report_tells_what_matters_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    text = write(tmp_path / "report.json", report(PLACE, SEATS, [], [tmp_path], "abc of commit x"))
    words = json.loads((tmp_path / "report.json").read_text())
    assert words["hosts"] == {"n1": "ranks 0, 1 on GPUs 2, 3", "n2": "ranks 2"}
    assert words["environment"]["NCCL_DEBUG"] == "WARN"
    assert words["packages"]["submitit"]
    assert words["file_systems"][str(tmp_path)]["free_gb"] > 0
    assert "hunter2" not in text


def test_report_stands_in_the_log_of_rank_0_and_its_place_in_the_environment(tmp_path):
    submission = jobs.submit(
        Count(folder=tmp_path, end=1),
        cluster="local",
        folder=tmp_path / "jobs",
        resources=jobs.Resources(nodes=2),
        name="x",
        code=jobs.Code(root=REPOSITORY),
    )
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert len(starts(tmp_path, 1)) == 1
    (path,) = (tmp_path / "jobs").glob("*_report_0.json")
    assert json.loads(path.read_text())["job"]["world_size"] == 2
    assert '"packages"' in submission.log_paths()[0].read_text()
    assert '"packages"' not in submission.log_paths()[1].read_text()
    assert "JOB_REPORT" not in os.environ
