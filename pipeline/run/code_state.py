"""Changes of the code that no commit holds, kept beside a run from the moment of its launch.

Taken by the launcher: on the nodes the code is a snapshot without history, and the checkout has moved on by then.
"""

import subprocess
from pathlib import Path
from typing import Any

from pipeline.common.atomic import write_text
from pipeline.common.secrets import SECRET_FILES, mask_secrets


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the code in `folder` and whether it was changed since; both None outside a git checkout."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed.strip())}


CHANGES_NAME = "uncommitted.patch"
MAX_PATCH = 1_000_000
"""Characters that are kept."""


def keep_changes(checkout: Path, run_dir: Path) -> None:
    """Write the uncommitted changes of `checkout` to `run_dir`; a former launch's go where there are none now."""
    patch = uncommitted_changes(checkout)
    if patch:
        write_text(run_dir / CHANGES_NAME, patch, durable=True)
    else:
        (run_dir / CHANGES_NAME).unlink(missing_ok=True)


def uncommitted_changes(checkout: Path) -> str:
    """The difference of a checkout to its commit; empty outside of one.

    Files that are secrets as a whole are left out, what looks like a secret is masked, so that a masked line does not
    apply, and the end of a long one is cut off.
    """
    command = ["git", "-C", str(checkout), "diff", "--no-color", "--no-ext-diff", "HEAD", "--", ":/"]
    command += [f":(top,exclude,glob,icase)**/{name}" for name in SECRET_FILES]
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        ) as git:
            assert git.stdout is not None
            patch = git.stdout.read(MAX_PATCH + 1)
            git.kill()
    except OSError:
        return ""
    cut = f"\n... cut after {MAX_PATCH:,} characters\n" if len(patch) > MAX_PATCH else ""
    return mask_secrets(patch[:MAX_PATCH]) + cut
