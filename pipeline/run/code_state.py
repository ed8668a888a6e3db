"""Commit and uncommitted changes of the code, as they were at the launch of a run.

The launcher records them: on the nodes the code is a snapshot without history, and the checkout may have changed by the
time a job starts.
"""

import subprocess
from pathlib import Path
from typing import Any

from pipeline.common.atomic import write_text
from pipeline.common.secrets import SECRET_FILES, mask_secrets

CHANGES_NAME = "uncommitted.patch"
MAX_PATCH = 1_000_000
"""Characters of the patch that are kept."""


def git_state(folder: Path) -> dict[str, Any]:
    """Return `commit` and `dirty` (whether files were changed since) of a checkout; both None elsewhere."""
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed.strip())}


def keep_changes(checkout: Path, run_dir: Path) -> None:
    """Write the uncommitted changes of `checkout` to `run_dir`; without any, remove those of a previous launch."""
    patch = uncommitted_changes(checkout)
    if patch:
        write_text(run_dir / CHANGES_NAME, patch, durable=True)
    else:
        (run_dir / CHANGES_NAME).unlink(missing_ok=True)


def uncommitted_changes(checkout: Path) -> str:
    """Return the patch from the commit of a checkout to its files; empty elsewhere.

    Files that are secrets as a whole are left out. What looks like a secret is masked, so a masked line does not apply.
    A long patch is cut off at its end.
    """
    command = ["git", "-C", str(checkout), "diff", "--no-color", "--no-ext-diff", "HEAD", "--", ":/"]
    command += [f":(top,exclude,glob,icase)**/{name}" for name in SECRET_FILES]
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace"
        ) as git:
            assert git.stdout is not None
            patch = git.stdout.read(MAX_PATCH + 1)
            git.kill()
    except OSError:
        return ""
    cut = f"\n... cut after {MAX_PATCH:,} characters\n" if len(patch) > MAX_PATCH else ""
    return mask_secrets(patch[:MAX_PATCH]) + cut


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
    ).stdout
