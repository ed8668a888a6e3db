"""What former jobs have left in a folder under an id that Slurm gives again, as a cluster that was set up anew does.

Nothing may take it for a trace of the new job: an old end or error would end a chain that has just been submitted.
"""

from pathlib import Path

from jobs.log import log


def traces(folder: Path) -> set[Path]:
    """The attempt logs and the results of ranks in a folder; looked for before a job is submitted."""
    return {*folder.glob("*_attempts.jsonl"), *folder.glob("*_result.pkl")}


def set_aside(former: set[Path], job_id: str) -> None:
    """Rename what a former job with the id of a new one has left; a failure is logged.

    Args:
        former: from `traces`, so that nothing of the new job is among them.
        job_id: Slurm's name for the new job.
    """
    for path in sorted(former):
        if path.name.startswith(f"{job_id}_"):
            try:
                path.replace(path.with_name(f"{path.name}.former"))
            except OSError as error:
                log(f"warning: {path} is of a former job with the id of the new one, and cannot be renamed: {error}")
