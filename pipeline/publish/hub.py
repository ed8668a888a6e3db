"""Uploads a published folder to the Hugging Face hub."""

import re
from pathlib import Path

from pipeline.common.errors import InputError, one_line

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def check_repository(repository: str) -> None:
    """Refuse what cannot name a repository of the hub.

    Raises:
        InputError: it is not of the form USER/NAME.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"--to hf://{repository}: a repository of the hub is hf://USER/NAME")


def upload(folder: Path, repository: str) -> str:
    """Create the repository unless it exists, upload the folder as one commit, and return the page's address.

    Raises:
        InputError: the hub refuses or does not answer; the message is one line and says where tokens come from.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        created = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add model")
    except Exception as error:  # huggingface_hub raises its own and its HTTP client's errors
        raise InputError(
            f"{repository} could not be uploaded to {api.endpoint}: {one_line(error)}; `hf auth login` or the variable "
            "HF_TOKEN gives access. `--to FOLDER` writes the same files here"
        ) from error
    return str(created)
