"""Hold the wanted resources against what the cluster has, before anything waits in a queue for ever."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.cluster import ask
from jobs.errors import JobError
from jobs.resources import DEFAULT_TIMEOUT_MIN, Resources

_FORMAT = "%R|%a|%D|%c|%m|%G|%l|%f|%P"


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one partition that are alike.

    Attributes:
        partition: its name.
        is_up: whether the partition takes jobs.
        is_default: whether jobs go there that name no partition.
        nodes: how many.
        cpus: cores of each.
        memory_mb: memory of each.
        gpus: GPUs of each.
        limit_min: the partition's time limit, None where it has none.
        features: what `--constraint` may ask for.
    """

    partition: str
    is_up: bool
    is_default: bool
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int
    limit_min: int | None
    features: frozenset[str]


def node_groups() -> list[NodeGroup]:
    """Ask `sinfo` what there is.

    Raises:
        JobError: it does not answer.
    """
    return [_group(line) for line in ask("sinfo", "--noheader", "--exact", f"--format={_FORMAT}").splitlines() if line]


def _group(line: str) -> NodeGroup:
    name, up, nodes, cpus, memory, gres, limit, features, marked = line.split("|")
    gpus = sum(int(count) for count in re.findall(r"gpu(?::[\w.-]+)?:(\d+)", re.sub(r"\([^)]*\)", "", gres)))
    return NodeGroup(
        partition=name,
        is_up=up == "up",
        is_default=marked.endswith("*"),
        nodes=int(nodes),
        cpus=int(cpus.rstrip("+")),
        memory_mb=int(memory.rstrip("+")),
        gpus=gpus,
        limit_min=_minutes(limit),
        features=frozenset(features.split(",")) - {"(null)"},
    )


def _minutes(limit: str) -> int | None:
    """Minutes of `days-hours:minutes:seconds`, None of `infinite`."""
    if limit in ("infinite", "n/a"):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = ([0] * (3 - len(parts)) + parts)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + (1 if seconds else 0)


def fit(resources: Resources, groups: Sequence[NodeGroup]) -> Resources:
    """Check the resources against the cluster, and settle the time limit where none was given.

    Args:
        resources: what is wanted.
        groups: what there is.

    Returns:
        The resources with `timeout_min` set: a day, or the partition's limit where that is shorter.

    Raises:
        JobError: one line for each thing that the partition cannot grant, naming what it has.
    """
    names = sorted({group.partition for group in groups})
    defaults = sorted({group.partition for group in groups if group.is_default})
    wanted = resources.partition.split(",") if resources.partition else defaults
    for name in wanted:
        if name not in names:
            raise JobError(f"--partition {name} does not exist; there are: {', '.join(names)}")
    here = [group for group in groups if group.partition in wanted]
    if not here:
        # No default partition: sbatch has a say of its own.
        return resources
    errors = [f"partition {group.partition} is down" for group in here[:1] if not any(g.is_up for g in here)]
    errors += _misfits(resources, here, "/".join(wanted))
    limits = [group.limit_min for group in here]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and resources.timeout_min is not None and resources.timeout_min > longest:
        errors.append(f"--timeout-min {resources.timeout_min} is over the limit of {'/'.join(wanted)}: {longest}")
    if errors:
        raise JobError("\n".join(errors))
    if resources.timeout_min is not None:
        return resources
    return replace(resources, timeout_min=min(DEFAULT_TIMEOUT_MIN, longest or DEFAULT_TIMEOUT_MIN))


def _misfits(resources: Resources, here: Sequence[NodeGroup], name: str) -> list[str]:
    errors = []
    cpus = resources.processes_per_node * (resources.cpus_per_task or 1)
    memory_mb = (resources.mem_gb or 0) * 1024
    features = set(re.findall(r"[\w.-]+", resources.constraint or ""))
    known = frozenset[str]().union(*(group.features for group in here))
    unknown = sorted(features - known - {"AND", "OR"})
    if unknown:
        errors.append(
            f"--constraint {unknown[0]}: no node of {name} has it; there are: {', '.join(sorted(known)) or 'none'}"
        )
    for flag, need, has, unit in (
        ("--gpus-per-node", resources.gpus_per_node or 0, max(group.gpus for group in here), "GPUs"),
        ("--tasks-per-node times --cpus-per-task", cpus, max(group.cpus for group in here), "cores"),
        ("--mem-gb", memory_mb / 1024, max(group.memory_mb for group in here) / 1024, "GB"),
    ):
        if need > has:
            errors.append(f"{flag} asks for {need:g} {unit} of a node; the largest of {name} has {has:g}")
    if errors:
        return errors
    fitting = [
        group
        for group in here
        if group.gpus >= (resources.gpus_per_node or 0) and group.cpus >= cpus and group.memory_mb >= memory_mb
    ]
    nodes = sum(group.nodes for group in fitting)
    if resources.nodes > nodes:
        errors.append(f"--nodes {resources.nodes} is more than the {nodes} nodes of {name} that have what is asked for")
    return errors
