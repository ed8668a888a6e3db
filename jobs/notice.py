"""How long before the end of an attempt its processes are told, and whether that is enough to save."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.cluster import Cluster, ask
from jobs.errors import NoAnswer
from jobs.resources import Resources

VARIABLE = "JOB_NOTICES"
"""Tells the task, on rank 0, what was found out about its job."""
ROUND_S = 30


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One announcement of an end.

    Attributes:
        seconds: from the announcement to the end.
        partition: whose grace at a preemption it is; "" for the notice of the time limit.
    """

    seconds: int
    partition: str = ""

    def words(self, needed_s: float) -> str:
        """The end of a sentence for somebody who needs longer: how long there is, and what to set."""
        wanted = ROUND_S * math.ceil(2 * needed_s / ROUND_S)
        if self.partition:
            return (
                f"partition {self.partition} gives {self.seconds} s at a preemption (GraceTime): ask for {wanted} s "
                "there or take another partition, or a preemption loses the steps since the last save"
            )
        return (
            f"the job is told of its time limit only {self.seconds} s before: set --signal-delay-s {wanted}, or every "
            "time limit loses the steps since the last save"
        )


def notices(cluster: Cluster, resources: Resources) -> list[Notice]:
    """What announces the end of an attempt; where Slurm does not answer, only what the job itself asks for.

    A partition counts where jobs of another can preempt those in it.
    """
    limited = cluster == "slurm" or (cluster == "local" and resources.timeout_min is not None)
    found = [Notice(seconds=resources.notice_s)] if limited else []
    if cluster == "slurm":
        try:
            partitions = [_fields(line) for line in ask("scontrol", "show", "partition", "--oneliner").splitlines()]
        except NoAnswer:
            return found
        wanted = resources.partition.split(",") if resources.partition else None
        highest = max((_number(fields, "PriorityTier") for fields in partitions), default=0)
        for fields in partitions:
            name = fields.get("PartitionName", "")
            ours = name in wanted if wanted else fields.get("Default") == "YES"
            spared = fields.get("PreemptMode", "OFF") == "OFF" or _number(fields, "PriorityTier") == highest
            if ours and not spared:
                found.append(Notice(seconds=_number(fields, "GraceTime"), partition=name))
    return found


def too_short(known: Sequence[Notice], needed_s: float) -> list[Notice]:
    """Those that leave less than `needed_s`."""
    return [notice for notice in known if notice.seconds < needed_s]


def export(known: Sequence[Notice]) -> None:
    """Tell the task of this process, and its children."""
    os.environ[VARIABLE] = json.dumps([asdict(notice) for notice in known])


def told_notices() -> list[Notice]:
    """What this process's job was told; empty outside a job."""
    return [Notice(**fields) for fields in json.loads(os.environ.get(VARIABLE, "[]"))]


def _fields(line: str) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in line.split())}


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdigit() else 0
