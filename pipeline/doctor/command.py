"""The command `python -m pipeline.doctor`: what a training would find here, and what to type next."""

from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.doctor.finding import Finding


def main(*, runs: Path = Path("runs")) -> int:
    """Look at this machine, the file system, Slurm and MLflow, and say what to type next.

    The exit status is 1 if a training would fail on something.

    Args:
        runs: Folder that will hold the runs; its file system is measured.
    """
    from jobs import JobError
    from pipeline.doctor import advice, cluster, machine, storage, tracking
    from pipeline.run.system import query_gpus

    problems = _section("this project", machine.look_at_code)
    problems += _section("this machine", machine.look_at_machine)
    problems += _section("compiler and decoder", machine.look_at_build)
    groups = []
    try:
        groups = cluster.find_groups()
        problems += _section("Slurm", lambda: cluster.look_at_cluster(groups))
    except JobError as error:
        problems += _section("Slurm", lambda refusal=str(error): [Finding("problem", refusal)])
    problems += _section("file system of the runs", lambda: storage.look_at_storage(runs.expanduser()))
    problems += _section("MLflow", tracking.look_at_tracking)
    print("next:", *(f"    {line}" for line in advice.commands(groups, has_gpus=bool(query_gpus("name")))), sep="\n")
    return min(problems, 1)


def _section(title: str, look: Callable[[], Iterable[Finding]]) -> int:
    """Print a part of the report as it is found; return the number of problems in it."""
    print(title, flush=True)
    problems = 0
    try:
        for finding in look():
            print(finding.line(), flush=True)
            problems += finding.level == "problem"
    except PipelineError as error:
        print(Finding("problem", str(error)).line(), flush=True)
        problems += 1
    return problems
