"""`submission.json`: which job was submitted last from a folder. Launchers, ranks and status commands find it there."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import JobError

_NAME = "submission.json"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What was submitted last from a folder.

    Attributes:
        cluster: cluster of the job.
        job_id: the cluster's name for the job; the first one of a chain.
        world_size: processes of the job.
        folder: folder of its scripts, pickles and logs, which the elements of an array share.
        chain: the jobs of a chain, in order; empty where it is none.
    """

    cluster: str
    job_id: str
    world_size: int
    folder: Path
    chain: tuple[str, ...] = ()


def write_submission(folder: Path, submitted: Submitted) -> None:
    """Write the file of a folder, in one step."""
    fields: dict[str, object] = {
        "cluster": submitted.cluster,
        "job_id": submitted.job_id,
        "world_size": submitted.world_size,
        "folder": str(submitted.folder),
    }
    if submitted.chain:
        fields["chain"] = list(submitted.chain)
    temporary = folder / f"{_NAME}.tmp"
    temporary.write_text(json.dumps(fields) + "\n", encoding="utf-8")
    temporary.replace(folder / _NAME)


def read_submission(folder: Path) -> Submitted | None:
    """What was submitted last from a folder; None where nothing was.

    Raises:
        JobError: the file is there and cannot be read, so that it is not known which jobs use the folder.
    """
    path = folder / _NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Submitted(
            cluster=str(fields["cluster"]),
            job_id=str(fields["job_id"]),
            world_size=int(fields["world_size"]),
            folder=Path(fields["folder"]),
            chain=tuple(str(job_id) for job_id in fields.get("chain", [])),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise JobError(f"cannot tell which jobs use this folder: {path} cannot be read ({reason})") from None


def logs_folder(folder: Path) -> Path:
    """The folder with the logs of the job that was submitted last from a folder; the folder itself if none is known."""
    with contextlib.suppress(JobError):
        submitted = read_submission(folder)
        return folder if submitted is None else submitted.folder
    return folder


def forget_submission(folder: Path) -> None:
    """Remove the file, as of a copied folder, whose job is the original's."""
    (folder / _NAME).unlink(missing_ok=True)
