"""The patch of uncommitted changes that a run keeps."""

import subprocess
from pathlib import Path

from jobs import take_snapshot
from pipeline.common.packages import PACKAGES
from pipeline.run import code_state as uncommitted
from pipeline.run.code_state import git_state, keep_changes, uncommitted_changes


def test_uncommitted_changes_are_kept_without_secrets(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    git("init", "-q")
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for name in ("code.py", "server.pem", ".env"):
        (tmp_path / name).write_text("before\n")
    git("add", "-A")
    git("commit", "-qm", "before")
    (tmp_path / "code.py").write_text('lr = 0.5\nTOKEN = "pa55"\nuri = "http://me:pa55@host/"\n')
    (tmp_path / "server.pem").write_text("pa55")
    (tmp_path / ".env").write_text("pa55")
    patch = uncommitted_changes(tmp_path)
    assert "+lr = 0.5" in patch
    assert "pa55" not in patch
    assert "server.pem" not in patch
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    keep_changes(tmp_path, run_dir)
    assert (run_dir / "uncommitted.patch").read_text() == patch
    keep_changes(Path("/"), run_dir)
    assert not list(run_dir.iterdir())
    monkeypatch.setattr(uncommitted, "MAX_PATCH", 100)
    assert "cut after 100 characters" in uncommitted_changes(tmp_path)
    assert uncommitted_changes(Path("/")) == ""


def test_a_repository_around_an_installation_is_not_the_codes(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    installed = tmp_path / ".venv/lib/python3/site-packages"
    for package in PACKAGES:
        (installed / package).mkdir(parents=True)
        (installed / package / "__init__.py").write_text("VALUE = 1\n")
    git("init", "-q")
    (tmp_path / "thesis.tex").write_text("first\n")
    git("add", "thesis.tex")
    git("commit", "-qm", "another project")
    (tmp_path / "thesis.tex").write_text("second\n")
    state = git_state(installed)
    assert (state["commit"], state["dirty"]) == (None, None)
    assert len(state["digest"]) == 16
    assert uncommitted_changes(installed) == ""
    assert take_snapshot(installed, PACKAGES, None).commit == ""
    (installed / "jobs/__init__.py").write_text("VALUE = 2\n")
    assert git_state(installed)["digest"] != state["digest"]
    # The same files, tracked: the rest of the repository is not in the patch.
    git("add", "-f", ".venv")
    git("commit", "-qm", "vendored")
    (installed / "jobs/__init__.py").write_text("VALUE = 3\n")
    assert git_state(installed)["dirty"] is True
    assert "+VALUE = 3" in uncommitted_changes(installed)
    assert "thesis" not in uncommitted_changes(installed)
