"""How long before the end of an attempt its processes receive a signal, and whether that is long enough to save."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.errors import SlurmError
from jobs.resources import Resources
from jobs.slurm import Cluster, ask

VARIABLE = "JOB_NOTICES"
"""Environment variable that passes the notices of a job to the task on rank 0, as JSON."""
ROUND_S = 30
"""Advised times are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A signal that announces the end of an attempt.

    Attributes:
        seconds: time from the signal to the end.
        partition: the partition whose grace time at a preemption this is; "" for the signal before the time limit.
    """

    seconds: int
    partition: str = ""

    def describe_shortage(self, needed_s: float) -> str:
        """Say that `seconds` is less than the `needed_s` that saving takes, and what to set; ends a sentence."""
        wanted = ROUND_S * math.ceil(2 * needed_s / ROUND_S)
        if self.partition:
            return (
                f"partition {self.partition} gives {self.seconds} s at a preemption (GraceTime): ask for {wanted} s "
                "there or use another partition; otherwise a preemption loses the steps since the last save"
            )
        return (
            f"the job is told of its time limit only {self.seconds} s before: set --signal-delay-s {wanted}; "
            "otherwise every time limit loses the steps since the last save"
        )


def find_notices(cluster: Cluster, resources: Resources) -> list[Notice]:
    """The notices that a job gets: before its time limit, and at a preemption in each of its partitions.

    A partition counts when jobs of another partition can preempt jobs in it. When Slurm does not answer, only the
    notice before the time limit is returned.
    """
    limited = cluster == "slurm" or (cluster == "local" and resources.timeout_min is not None)
    found = [Notice(seconds=resources.notice_s)] if limited else []
    if cluster == "slurm":
        try:
            partitions = [_fields(line) for line in ask("scontrol", "show", "partition", "--oneliner").splitlines()]
        except SlurmError:
            return found
        wanted = resources.partition.split(",") if resources.partition else None
        highest = max((_number(fields, "PriorityTier") for fields in partitions), default=0)
        for fields in partitions:
            name = fields.get("PartitionName", "")
            ours = name in wanted if wanted else fields.get("Default") == "YES"
            never_preempted = fields.get("PreemptMode", "OFF") == "OFF" or _number(fields, "PriorityTier") == highest
            if ours and not never_preempted:
                found.append(Notice(seconds=_number(fields, "GraceTime"), partition=name))
    return found


def too_short(notices: Sequence[Notice], needed_s: float) -> list[Notice]:
    """The notices that leave less than `needed_s` seconds."""
    return [notice for notice in notices if notice.seconds < needed_s]


def export_notices(notices: Sequence[Notice]) -> None:
    """Set `JOB_NOTICES` for this process and its children."""
    os.environ[VARIABLE] = json.dumps([asdict(notice) for notice in notices])


def notices_from_environment() -> list[Notice]:
    """The notices of the job to which this process belongs, from `JOB_NOTICES`; empty outside a job."""
    return [Notice(**fields) for fields in json.loads(os.environ.get(VARIABLE, "[]"))]


def _fields(line: str) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in line.split())}


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdigit() else 0
