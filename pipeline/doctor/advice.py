"""What to type next, for the cluster that there is."""

from collections.abc import Sequence

from jobs import NodeGroup

DEMO = "python -m pipeline.launch --recipe demo                # the whole system, 3 minutes on 2 cores"
PACK = "python -m sharding.build --source SOURCE --output SHARDS   # pack ImageNet once"


def commands(groups: Sequence[NodeGroup], *, has_gpus: bool) -> list[str]:
    """Return the commands that a newcomer would type next, in order; `has_gpus` is about this machine."""
    ready = [group for group in groups if group.is_up]
    if not ready:
        train = "python -m pipeline.launch --train.data.shards SHARDS"
        return [DEMO, PACK, train + ("" if has_gpus else "       # on a machine with GPUs")]
    # Most GPUs in all; of equal ones the default partition.
    best = max(ready, key=lambda group: (group.nodes * group.gpus, group.is_default, group.nodes))
    nodes = min(best.nodes, 4)
    flags = f"--cluster slurm --nodes {nodes}" + ("" if best.is_default else f" --partition {best.partition}")
    flags += f" --gpus-per-node {best.gpus}" if best.gpus else ""
    train = f"python -m pipeline.launch {flags} --train.data.shards SHARDS"
    return [f"{DEMO.split('  ')[0]} --cluster local", PACK, f"{train} --dry-run", train]
