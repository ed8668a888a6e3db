"""Looks at Slurm: partitions with their nodes, GPUs, limits and grace times."""

from collections.abc import Iterator, Sequence

from jobs import JobError, NodeGroup, Resources, choose_cluster, find_notices, node_groups
from pipeline.doctor.finding import Finding


def find_groups() -> list[NodeGroup]:
    """Return the groups of nodes that Slurm has; empty where there is no Slurm here.

    Raises:
        JobError: Slurm is here, and does not answer.
    """
    cluster, _ = choose_cluster("auto", falls_back=False)
    return node_groups() if cluster == "slurm" else []


def look_at_cluster(groups: Sequence[NodeGroup]) -> Iterator[Finding]:
    """Yield a line for each partition, and what a preemption there leaves."""
    if not groups:
        yield Finding("ok", "no Slurm cluster answers here: trainings run as processes of this machine")
    for name in dict.fromkeys(group.partition for group in groups):
        own = [group for group in groups if group.partition == name]
        kinds = ", ".join(
            f"{group.nodes} nodes of {group.cpus} cores, {group.memory_mb / 1024:.0f} GB"
            + (f", {group.gpus} GPUs" if group.gpus else "")
            for group in own
        )
        limit = own[0].limit_min
        text = (
            f"partition {name}{' (default)' if own[0].is_default else ''}: {kinds}; "
            f"{'no time limit' if limit is None else f'at most {limit:,} minutes'}"
        )
        if not own[0].is_up:
            yield Finding("warning", f"{text}; it takes no jobs now")
            continue
        yield Finding("ok", text)
        yield from _preemption(name)


def _preemption(partition: str) -> Iterator[Finding]:
    try:
        notices = find_notices("slurm", Resources(partition=partition))
    except JobError as error:
        yield Finding("warning", str(error))
        return
    for notice in notices:
        if not notice.partition:
            continue
        if notice.seconds:
            yield Finding("ok", f"partition {partition} may be preempted, {notice.seconds} s after a signal to save")
        else:
            yield Finding(
                "warning",
                f"partition {partition} may be preempted without a grace time: the steps since the last save are done "
                "again (--train.save-every-steps)",
            )
