"""The command `python -m pipeline.launch`: check everything, submit a training as a job, follow it to its end.

`options` are the flags, `plan` the decisions, `checks` and `place_checks` their checks. `run` submits one training,
`sweep` many. `progress` and `closing` are what the user sees while jobs run and at their end; `dry_run` shows a plan
without a job.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.launch.command import launch
    from pipeline.launch.options import LaunchError, LaunchOptions, parse

__all__ = ["LaunchError", "LaunchOptions", "launch", "parse"]

__getattr__ = lazy_attributes(
    __name__,
    {"LaunchError": "options", "LaunchOptions": "options", "launch": "command", "parse": "options"},
)
