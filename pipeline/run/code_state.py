"""Commit and uncommitted changes of the code, as they were at the launch of a run.

The launcher records them: on the nodes the code is a snapshot without history, and the checkout may have changed by the
time a job starts.
"""

import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.snapshot import digest
from pipeline.common.atomic import write_text
from pipeline.common.packages import PACKAGES
from pipeline.common.secrets import SECRET_FILES, mask_secrets

DISTRIBUTION = "transxnet-pipeline"
"""Name under which the packages are installed."""
CHANGES_NAME = "uncommitted.patch"
MAX_PATCH = 1_000_000
"""Characters of the patch that are kept."""


def git_state(folder: Path) -> dict[str, Any]:
    """Return the state of the code in `folder`.

    Returns:
        `commit` and `dirty` (whether files were changed since) of a checkout. Elsewhere both are None, and `version`
        and `digest` describe the installed packages: the repository around an environment is not theirs.
    """
    try:
        if _is_tracked(folder):
            commit = _git(folder, "rev-parse", "HEAD").strip()
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
            return {"commit": commit, "dirty": bool(changed.strip())}
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = None
    return {"commit": None, "dirty": None, "version": version, "digest": digest(folder, PACKAGES)}


def _is_tracked(folder: Path) -> bool:
    """Whether a repository tracks the packages' own files in `folder`."""
    files = [f"{package}/__init__.py" for package in PACKAGES]
    return _git(folder, "ls-files", "--", *files).split() == sorted(files)


def keep_changes(checkout: Path, run_dir: Path) -> None:
    """Write the uncommitted changes of `checkout` to `run_dir`; without any, remove those of a previous launch."""
    patch = uncommitted_changes(checkout)
    if patch:
        write_text(run_dir / CHANGES_NAME, patch, durable=True)
    else:
        (run_dir / CHANGES_NAME).unlink(missing_ok=True)


def uncommitted_changes(checkout: Path) -> str:
    """Return the patch from the commit of a checkout to its files; empty elsewhere, also within another repository.

    Files that are secrets as a whole are left out. What looks like a secret is masked, so a masked line does not apply.
    A long patch is cut off at its end.
    """
    command = ["git", "-C", str(checkout), "diff", "--no-color", "--no-ext-diff", "HEAD", "--", "."]
    command += [f":(top,exclude,glob,icase)**/{name}" for name in SECRET_FILES]
    try:
        if not _is_tracked(checkout):
            return ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace"
        ) as git:
            assert git.stdout is not None
            patch = git.stdout.read(MAX_PATCH + 1)
            git.kill()
    except (OSError, subprocess.SubprocessError):
        return ""
    cut = f"\n... cut after {MAX_PATCH:,} characters\n" if len(patch) > MAX_PATCH else ""
    return mask_secrets(patch[:MAX_PATCH]) + cut


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
    ).stdout
