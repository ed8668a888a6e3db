"""The patch of uncommitted changes that a run keeps."""

import subprocess
from pathlib import Path

from pipeline.run import code_state as uncommitted
from pipeline.run.code_state import keep_changes, uncommitted_changes


def test_uncommitted_changes_are_kept_without_secrets(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    git("init", "-q")
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
