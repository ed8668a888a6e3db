"""The tasks by name; each is imported when it is first asked for."""

from functools import cache
from importlib import import_module

from pipeline.tasks.task import Task

DEFAULT = "classification"
"""Task of what was stored before tasks had names."""
TASKS = ("classification", "segmentation", "detection")
"""Names of the tasks; the package of each, below `pipeline.tasks`, has the task as `TASK`."""


@cache
def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        KeyError: there is no such task.
    """
    if name not in TASKS:
        raise KeyError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    return import_module(f"pipeline.tasks.{name}").TASK
