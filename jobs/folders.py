"""Folders that hold pickles. They are private: whoever can write a pickle there can run code as its owner."""

import os
import stat
from pathlib import Path

from jobs.errors import JobError


def private_directory(path: Path) -> Path:
    """Create `path` with mode 0700, or remove the access of other users from an existing folder of this user.

    Args:
        path: folder to create, with its parents; a symbolic link is followed.

    Returns:
        The absolute path.

    Raises:
        JobError: the folder belongs to another user, or the path is not a folder.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise JobError(f"{path} is a file, but a folder is needed: choose another path") from None
    except OSError as error:
        raise JobError(f"cannot create {path}: {error.strerror}") from None
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise JobError(
            f"{path} belongs to user {status.st_uid}, not to you ({os.geteuid()}), and pickles in it would run as you: "
            "choose a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path
