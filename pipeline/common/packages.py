"""Whether the packages that Python finds are those of this project: a folder of the same name can hide one."""

import importlib.util
from pathlib import Path

from pipeline.common.errors import InputError
from pipeline.common.processes import PROJECT_ROOT

PACKAGES = ("pipeline", "transxnet", "jobs", "sharding")
"""Packages of this project, which the processes of a job import."""


def check_packages() -> None:
    """Refuse to run with packages of another place than this one; nothing is imported.

    Raises:
        InputError: the message names the folder that hides a package.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        own = PROJECT_ROOT / name
        folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
        if not folders and spec is not None:
            folders = [Path(spec.origin or name)]
        if not folders:
            raise InputError(f"the package {name} of this project is missing in {PROJECT_ROOT}: install it again")
        if folders[0].resolve() != own:
            raise InputError(
                f"{folders[0]} hides the package {name} of this project in {PROJECT_ROOT}: start from another folder, "
                "or rename that one"
            )
