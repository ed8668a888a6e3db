"""Nodes that a job is to avoid when Slurm starts it again: recorded in its folder, and set when it is requeued.

Slurm changes the nodes of a pending job only. A job that has just been requeued is pending, although its processes have
not ended yet, so rank 0 does it then.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from jobs.errors import JobError
from jobs.log import log
from jobs.slurm import ask

FILE_NAME = "excluded_nodes.json"
"""In the folder of the report: the reason for each node that is left out, and of which Slurm was told for a job."""
_EXCLUDED = re.compile(r"\bExcNodeList=(\S+)")


def exclude_nodes(reasons: Mapping[str, str], share: float) -> list[str]:
    """Record nodes that the next start of this job is to avoid; call it in rank 0 of a job, as often as needed.

    Args:
        reasons: why each node is to be avoided, the worst first.
        share: greatest share of the partition's nodes that may be avoided; 0 takes back what was recorded before.

    Returns:
        Those of the nodes that will be avoided: none outside Slurm, and none where too few would be left for the job.
    """
    folder = _folder()
    if folder is None:
        return []
    known, told = _read(folder)
    if share <= 0:
        _write(folder, {}, told)
        return []
    try:
        new = _allowed([node for node in reasons if node not in known], len(known), share)
    except JobError as error:
        log(f"no node is left out of the next start: {error}")
        new = []
    for node in new:
        log(f"node {node} will be left out when this job is requeued: {reasons[node]}")
    known |= {node: reasons[node] for node in new}
    _write(folder, known, told)
    return sorted(set(reasons) & set(known))


def apply_exclusion(folder: Path, job_id: str) -> None:
    """Let Slurm avoid the recorded nodes, after it was told to requeue this job; a failure is logged, and no more.

    Nodes that the user has excluded stay so.

    Args:
        folder: of the job's report.
        job_id: Slurm's name for the job.
    """
    reasons, told = _read(folder)
    before = told.get(job_id, [])
    if set(reasons) == set(before):
        return
    try:
        found = _EXCLUDED.search(ask("scontrol", "show", "job", "--oneliner", job_id))
        present = (
            [] if found is None or found[1] == "(null)" else ask("scontrol", "show", "hostnames", found[1]).split()
        )
        nodes = sorted(set(present) - set(before) | set(reasons))
        ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}")
        _write(folder, reasons, told | {job_id: sorted(reasons)})
    except (JobError, OSError) as error:
        log(f"Slurm does not leave the recorded nodes out of the next start: {error}")


def _allowed(nodes: list[str], already: int, share: float) -> list[str]:
    """As many of the nodes as may be avoided besides those that are already.

    Raises:
        JobError: Slurm does not answer.
    """
    if not nodes:
        return []
    name = os.environ.get("SLURM_JOB_PARTITION", "")
    partition = ["--partition", name] if name else []
    listed = ask("sinfo", "--noheader", "--responding", "--Node", "--format=%N %t", *partition)
    states = dict(line.split() for line in listed.splitlines() if len(line.split()) == 2)
    total = sum(not state.startswith(("down", "drain", "drng", "fail")) for state in states.values())
    needed = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    room = max(0, min(int(share * total), total - needed) - already)
    if room < len(nodes):
        log(f"of {total} nodes of the partition, at most {room} more may be left out: {', '.join(nodes)}")
    return nodes[:room]


def _folder() -> Path | None:
    """The folder of the job's report, under Slurm."""
    report = os.environ.get("JOB_REPORT")
    return Path(report).parent if report and "SLURM_JOB_ID" in os.environ else None


def _read(folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The reason for each node that is left out, and the nodes of which Slurm was told, by the job."""
    try:
        content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        told = {str(job): list(map(str, nodes)) for job, nodes in content["told"].items()}
        return {str(node): str(reason) for node, reason in content["nodes"].items()}, told
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}


def _write(folder: Path, reasons: Mapping[str, str], told: Mapping[str, list[str]]) -> None:
    path = folder / FILE_NAME
    if not reasons and not told and not path.exists():
        return
    temporary = path.with_name(f".{FILE_NAME}")
    temporary.write_text(json.dumps({"nodes": reasons, "told": told}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
