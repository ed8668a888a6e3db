"""Runs that come from another one: begun again after their checkpoints were lost, or copied."""

import shutil
from pathlib import Path

from jobs import forget_submission
from pipeline.run import directory as run_directory
from pipeline.run.files import CONFIG_NAME, EVALUATIONS, LOCK_NAME, LOGS
from pipeline.run.lost_checkpoints import describe_lost_checkpoints
from pipeline.run.mirror_files import forget_target
from pipeline.tracking.state import LOCK_NAME as SENDING_LOCK_NAME
from pipeline.tracking.state import TrackingState, load_state, new_key, original_of, save_state
from pipeline.weights.card import is_exported

FORMER = "former"
"""Folders `former-1`, `former-2`, … hold the files of a run as they were before it was begun again."""
_STAY = (CONFIG_NAME, LOCK_NAME, SENDING_LOCK_NAME, LOGS, "code")


def begins_again(run_dir: Path) -> bool:
    """Whether `--begin-again` has a run begin again: there were checkpoints, and none is left that is whole."""
    from pipeline.checkpoint.store import CheckpointStore

    if is_exported(run_dir):
        return False
    is_verified = CheckpointStore(run_dir).newest_valid(lambda _: None) is None
    return describe_lost_checkpoints(run_dir, is_verified=is_verified) is not None


def begin_again(run_dir: Path) -> Path:
    """Move the files of a run into a folder below it, so that it begins again; return that folder.

    The run gets an MLflow run of its own, with the tag `begun_again_from`. The logs of its jobs stay.

    Raises:
        RunDirectoryError: an attempt is training the run.
    """
    with run_directory.lock(run_dir):
        state = load_state(run_dir)
        numbers = (number for number in range(1, 10**6) if not (run_dir / f"{FORMER}-{number}").exists())
        former = run_dir / f"{FORMER}-{next(numbers)}"
        former.mkdir(mode=0o700)
        for path in sorted(run_dir.iterdir()):
            if path.name not in _STAY and not path.name.startswith(f"{FORMER}-"):
                path.rename(former / path.name)
        shutil.copy2(run_dir / CONFIG_NAME, former / CONFIG_NAME)
        if state is not None:
            links = {"begun_again_from": state.run_id} if state.run_id else {}
            save_state(run_dir, TrackingState(key=new_key(), tracking_uri=state.tracking_uri, links=links))
    return former


def adopt_copy(run_dir: Path) -> Path | None:
    """Give a copied run directory an identity of its own; return the folder that it is a copy of, None if it is none.

    It gets an MLflow run of its own, with the tag `copied_from`, no longer follows the original's jobs, and is not
    copied to the original's mirror.
    """
    original = original_of(run_dir)
    if original is None:
        return None
    state = load_state(run_dir)
    assert state is not None
    save_state(run_dir, state)
    for folder in (run_dir, run_dir / EVALUATIONS):
        forget_submission(folder / LOGS)
    forget_target(run_dir)
    return original
