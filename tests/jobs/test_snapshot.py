"""The snapshot of the code that a job runs."""

import shutil
import subprocess

import jobs
from jobs.snapshot import take_snapshot
from tests.jobs.support import REPOSITORY


def write_package(root, text="VALUE = 1\n"):
    (root / "one").mkdir(exist_ok=True, parents=True)
    (root / "one" / "__init__.py").write_text(text)
    (root / "one" / "kernel.cu").write_text("// source\n")
    (root / "one" / "x.pyc").write_text("built")


def test_snapshot_keeps_the_submitted_code(tmp_path):
    write_package(tmp_path / "checkout")
    code = take_snapshot(tmp_path / "checkout", ["one"], tmp_path / "run")
    write_package(tmp_path / "checkout", "VALUE = 2\n")
    assert (code.root / "one" / "__init__.py").read_text() == "VALUE = 1\n"
    assert sorted(path.name for path in (code.root / "one").iterdir()) == ["__init__.py", "kernel.cu"]
    assert "as submitted" in code.describe()
    other = take_snapshot(tmp_path / "checkout", ["one"], tmp_path / "run")
    assert other.root != code.root


def test_change_of_the_code_without_a_snapshot_is_reported(tmp_path):
    write_package(tmp_path)
    code = take_snapshot(tmp_path, ["one"], None)
    assert "as submitted" in code.describe()
    write_package(tmp_path, "VALUE = 2\n")
    assert code.describe().startswith(f"CHANGED since the submission: {code.digest} then, ")


def test_commit_is_marked_when_files_differ_from_it(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    write_package(tmp_path)
    assert take_snapshot(tmp_path, ["one"], None).commit == ""
    git("init")
    git("add", ".")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "x")
    commit = take_snapshot(tmp_path, ["one"], None).commit
    assert len(commit) == 40
    write_package(tmp_path, "VALUE = 2\n")
    assert take_snapshot(tmp_path, ["one"], None).commit == f"{commit}+changes"


def test_processes_run_the_snapshot_and_not_the_edited_folder_of_submission(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(REPOSITORY / "jobs", checkout / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    write_package(checkout, "def task(stop_requested):\n    raise ValueError('the submitted code')\n")
    monkeypatch.syspath_prepend(str(checkout))
    monkeypatch.chdir(checkout)
    import one  # pyright: ignore[reportMissingImports]

    code = take_snapshot(checkout, ["one", "jobs"], tmp_path / "run")
    write_package(checkout, "def task(stop_requested):\n    raise ValueError('the edited code')\n")
    submission = jobs.submit(
        one.task, cluster="local", folder=tmp_path / "run", resources=jobs.Resources(), name="x", code=code
    )
    assert submission.wait(0.05) is jobs.Outcome.FAILED
    assert "the submitted code" in submission.failure()
