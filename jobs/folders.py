"""Folders that hold pickles: whoever can write one runs code as its owner, so they are private."""

import os
import stat
from pathlib import Path

from jobs.errors import JobError


def private_directory(path: Path) -> Path:
    """Make `path` (mode 0700) or take over an existing folder of this user, closing it to everybody else.

    Args:
        path: folder to create, with its parents; a link is followed.

    Returns:
        The absolute path.

    Raises:
        JobError: the folder belongs to another user, or the path is not a folder.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise JobError(f"{path} is a file; a folder is needed there: choose another path") from None
    except OSError as error:
        raise JobError(f"cannot create {path}: {error.strerror}") from None
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise JobError(
            f"{path} belongs to user {status.st_uid}, not to you ({os.geteuid()}): its pickles would run as you. "
            "Choose a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path
