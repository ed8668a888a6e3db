"""Check the requested resources against the cluster, so that no job waits for ever for nodes that do not exist."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.errors import JobError
from jobs.resources import DEFAULT_TIMEOUT_MIN, Resources
from jobs.slurm import ask

_FORMAT = "%R|%a|%D|%c|%m|%G|%l|%f|%P"
"""Fields of `sinfo`, in the order in which `_parse_group` reads them."""


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """A group of identical nodes in one partition.

    Attributes:
        partition: name of the partition.
        is_up: whether the partition accepts jobs.
        is_default: whether jobs without a partition go to this one.
        nodes: number of nodes.
        cpus: cores of each node.
        memory_mb: memory of each node in MiB.
        gpus: GPUs of each node.
        limit_min: the partition's time limit in minutes; None where it has none.
        features: features of the nodes, for `--constraint`.
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
    """Ask `sinfo` for all groups of nodes.

    Raises:
        JobError: `sinfo` does not answer.
    """
    return [
        _parse_group(line) for line in ask("sinfo", "--noheader", "--exact", f"--format={_FORMAT}").splitlines() if line
    ]


def _parse_group(line: str) -> NodeGroup:
    name, up, nodes, cpus, memory, gres, limit, features, starred_name = line.split("|")
    gpus = sum(int(count) for count in re.findall(r"gpu(?::[\w.-]+)?:(\d+)", re.sub(r"\([^)]*\)", "", gres)))
    return NodeGroup(
        partition=name,
        is_up=up == "up",
        is_default=starred_name.endswith("*"),
        nodes=int(nodes),
        cpus=int(cpus.rstrip("+")),
        memory_mb=int(memory.rstrip("+")),
        gpus=gpus,
        limit_min=_parse_minutes(limit),
        features=frozenset(features.split(",")) - {"(null)"},
    )


def _parse_minutes(limit: str) -> int | None:
    """The minutes in `days-hours:minutes:seconds`; None for `infinite`."""
    if limit in ("infinite", "n/a"):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = ([0] * (3 - len(parts)) + parts)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + (1 if seconds else 0)


def fit_resources(resources: Resources, groups: Sequence[NodeGroup]) -> Resources:
    """Check the requested resources against the cluster, and set the time limit where none was given.

    Args:
        resources: resources that the job asks for.
        groups: groups of nodes that the cluster has.

    Returns:
        The resources with `timeout_min` set: a day, or the partition's limit where that is shorter.

    Raises:
        JobError: one line for each resource that the partition cannot provide, with what it has.
    """
    names = sorted({group.partition for group in groups})
    defaults = sorted({group.partition for group in groups if group.is_default})
    wanted = resources.partition.split(",") if resources.partition else defaults
    for name in wanted:
        if name not in names:
            raise JobError(f"--partition {name} does not exist; there are: {', '.join(names)}")
    here = [group for group in groups if group.partition in wanted]
    if not here:
        # Without a default partition, sbatch decides.
        return resources
    errors = [f"partition {group.partition} is down" for group in here[:1] if not any(g.is_up for g in here)]
    errors += _shortages(resources, here, "/".join(wanted))
    limits = [group.limit_min for group in here]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and resources.timeout_min is not None and resources.timeout_min > longest:
        errors.append(f"--timeout-min {resources.timeout_min} is over the limit of {'/'.join(wanted)}: {longest}")
    if errors:
        raise JobError("\n".join(errors))
    if resources.timeout_min is not None:
        return resources
    return replace(resources, timeout_min=min(DEFAULT_TIMEOUT_MIN, longest or DEFAULT_TIMEOUT_MIN))


def with_cores(resources: Resources, groups: Sequence[NodeGroup], processes: int) -> Resources:
    """Set `cpus_per_task` where it was not given: most clusters would give each process a single core.

    Args:
        resources: checked resources of the job.
        groups: groups of nodes that the cluster has.
        processes: how many busy processes each process of the job is, itself included.

    Returns:
        The resources with that many cores for each process, or with its share of the smallest fitting node where that
        is less. A process with GPUs has a share for each of its node's GPUs, so that it takes no core of another GPU.
    """
    wanted = resources.partition.split(",") if resources.partition else [g.partition for g in groups if g.is_default]
    shares = []
    for group in groups:
        if group.partition not in wanted or group.gpus < (resources.gpus_per_node or 0):
            continue
        cpus = group.cpus
        if resources.gpus_per_node:
            cpus = group.cpus * resources.gpus_per_node // group.gpus
        if cpus >= resources.processes_per_node:
            shares.append(cpus // resources.processes_per_node)
    if resources.cpus_per_task is not None or not shares:
        return resources
    return replace(resources, cpus_per_task=min(processes, *shares))


def _shortages(resources: Resources, here: Sequence[NodeGroup], name: str) -> list[str]:
    """One message for each resource that no node of the groups `here` has, or too few of them."""
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
        errors.append(f"--nodes {resources.nodes} is more than the {nodes} nodes of {name} that have these resources")
    return errors
