"""What a run directory keeps on its mirror: where it is (`mirror.json`), and how far it is (`mirror_progress.json`).

The address may hold a secret, so the first file can only be read by the user.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json, replacing, write_json
from pipeline.common.console import duration
from pipeline.common.secrets import mask_secrets
from pipeline.run.files import durable_step

TARGET_NAME = "mirror.json"
PROGRESS_NAME = "mirror_progress.json"
_KINDS = {
    "step": int,
    "time": int | float,
    "is_complete": bool,
    "behind_since": int | float,
    "problem": str,
    "taken_over": bool,
}
INTERRUPTED_S = 7.0
"""How long the end of an interrupted attempt may take with the mirror's last copy, in seconds."""
_MAX_TOKENS = 50
_TIMES, _LATEST = ("time", "behind_since"), 1e11


@dataclass(frozen=True, kw_only=True)
class MirrorTarget:
    """Where a run is mirrored."""

    location: str
    """Path or URI of the mirror."""
    run: str
    """Id of the run, which stays the same when it goes on elsewhere."""
    owner: str
    """Folder in the mirror that this run directory writes to, and no other one."""
    folder: str = ""
    """Run directory that this was written in; empty: by an earlier version."""
    inode: int = 0
    """Inode of that folder: a copy has another one, a folder that was renamed the same."""
    tokens: tuple[str, ...] = ()
    """Tokens of the processes that have copied this folder: one in the mirror that is not among them is a copy's."""


@dataclass(frozen=True, kw_only=True)
class MirrorProgress:
    """How far a mirror has got. Times are unix seconds."""

    step: int | None = None
    """Newest step in the mirror; None: none yet."""
    time: float | None = None
    """When that step was complete there."""
    is_complete: bool = False
    """Whether the mirror had everything at the last look."""
    behind_since: float | None = None
    """Since when the mirror has taken nothing; None while it works."""
    problem: str = ""
    """Why it takes nothing, or why it is not used any more; empty while it works."""
    taken_over: bool = False
    """Whether another run directory has taken the mirror over, so that this one copies nothing any more."""


def read_target(run_dir: Path) -> MirrorTarget | None:
    """Return where a run is mirrored; None if it is not, or if the run is a copy of one whose mirror it is."""
    content = read_json(run_dir / TARGET_NAME) or {}
    fields = dataclasses.fields(MirrorTarget)
    known: dict[str, Any] = {field.name: content.get(field.name, field.default) for field in fields}
    kinds = {"inode": int, "tokens": list | tuple}
    if not all(isinstance(value, kinds.get(name, str)) for name, value in known.items()):
        return None
    known["tokens"] = tuple(known["tokens"])
    target = MirrorTarget(**known)
    return None if _is_copy(run_dir, target) else target


def _is_copy(run_dir: Path, target: MirrorTarget) -> bool:
    """Whether the target was written in another folder that still exists."""
    try:
        return 0 != target.inode != run_dir.stat().st_ino and Path(target.folder).stat().st_ino == target.inode
    except OSError:
        return False


def write_target(folder: Path, target: MirrorTarget, run_dir: Path | None = None) -> None:
    """Keep where a run is mirrored, for the processes of its jobs.

    Args:
        folder: where to write.
        target: what is kept; its `folder` and `inode` are set.
        run_dir: where `folder` is moved to afterwards; by default it stays.
    """
    target = dataclasses.replace(target, folder=str((run_dir or folder).resolve()), inode=folder.stat().st_ino)
    with replacing(folder / TARGET_NAME, durable=True) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(dataclasses.asdict(target)) + "\n", encoding="utf-8")


def add_token(run_dir: Path, token: str) -> None:
    """Keep the token of a process that is about to copy a run."""
    target = read_target(run_dir)
    if target is not None:
        write_target(run_dir, dataclasses.replace(target, tokens=(*target.tokens, token)[-_MAX_TOKENS:]))


def forget_target(run_dir: Path) -> None:
    """Mirror a run no longer."""
    for name in (TARGET_NAME, PROGRESS_NAME):
        (run_dir / name).unlink(missing_ok=True)


def read_progress(run_dir: Path) -> MirrorProgress:
    """Return how far the mirror of a run has got; a value that is not of its type is taken as unknown."""
    content = read_json(run_dir / PROGRESS_NAME) or {}
    known = {name: value for name, value in content.items() if name in _KINDS and isinstance(value, _KINDS[name])}
    return MirrorProgress(
        **{name: value for name, value in known.items() if name not in _TIMES or 0 <= value < _LATEST}
    )


def write_progress(run_dir: Path, progress: MirrorProgress) -> None:
    """Keep how far the mirror of a run has got."""
    write_json(run_dir / PROGRESS_NAME, dataclasses.asdict(progress))


def lacks_something(run_dir: Path) -> bool:
    """Whether a run has a mirror that it still owns, and that lacks its newest step or had not all at the last look."""
    progress = read_progress(run_dir)
    if read_target(run_dir) is None or progress.taken_over:
        return False
    step = -1 if progress.step is None else progress.step
    return not progress.is_complete or durable_step(run_dir) > step


def describe_mirror(run_dir: Path, newest: int | None, now: float, *, is_running: bool) -> str | None:
    """Describe the mirror of a run in one line: its newest step, how far it is behind, and its last error.

    Args:
        run_dir: folder of the run.
        newest: step of the run's newest checkpoint; None: there is none.
        now: current time, in unix seconds.
        is_running: whether the run is being trained; else the line has the command that completes the mirror.

    Returns:
        The line; None if the run has no mirror.
    """
    target = read_target(run_dir)
    if target is None:
        return None
    progress = read_progress(run_dir)
    text = "nothing yet" if progress.step is None else f"step {progress.step}"
    behind = 0 if newest is None else newest - (progress.step or 0)
    if behind > 0:
        text += f", {behind} steps behind"
    text += f" in {mask_secrets(target.location)}"
    if progress.problem:
        since = "" if progress.behind_since is None else f" for {duration(max(0.0, now - progress.behind_since))}"
        text += f"; {progress.problem}{since}"
    elif not (is_running or (progress.is_complete and behind == 0)):
        text += f"; to complete it: python -m pipeline.status --sync {run_dir}"
    return text
