"""Marks of tests that need a GPU or Slurm, order of the tests, and how they share workers, cores and compiled files."""

import gc
import os
import shutil
import signal
import sys

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


def _take_share_of_cores() -> None:
    """Let a worker of xdist, and what it starts, compute with its share of the cores.

    Workers that compute with all cores wait for each other's threads, busily: with two workers on two cores, a set of
    tests of the networks took 191 seconds of CPU time, and 73 with a thread each. Called before torch is imported.
    """
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))


def _keep_compiled_modules() -> None:
    """Let hundreds of processes compile the same files once, also where the environment asks for no bytecode."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        sys.dont_write_bytecode = False


_take_share_of_cores()
_keep_compiled_modules()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_slurm() -> bool:
    return all(
        shutil.which(program) or os.path.exists(f"/usr/sbin/{program}") for program in ("slurmctld", "slurmd", "munged")
    )


NEEDS = {
    "gpu": (_has_gpu, "REQUIRE_GPU", "needs a CUDA device"),
    "slurm": (_has_slurm, "REQUIRE_SLURM", "needs Slurm: apt-get install slurm-wlm munge"),
}


TOGETHER = {
    "slurm": ("tests/slurm/",),
    "jobs": ("tests/jobs/",),
    "ranks": ("tests/pipeline/engine/", "tests/pipeline/train/", "tests/pipeline/checkpoint/"),
    "mlflow": (
        "tests/pipeline/register/",
        "tests/pipeline/evaluate/",
        "tests/pipeline/test_serve.py",
        "tests/pipeline/tracking/",
    ),
}
"""Files whose tests run in one worker.

They share a cluster, a process to fork ranks from, or a trained model. Those of jobs wait for processes most of the
time, while the other worker computes.
"""

LONGEST = (
    "tests/slurm/",
    "tests/test_end_to_end.py",
    *TOGETHER["ranks"],
    "tests/transxnet/kernels/",
    *TOGETHER["mlflow"],
    *TOGETHER["jobs"],
)
"""Paths of the tests that start first, because they take longest."""

LEFT_OUT = {
    "slow": "minutes long: run with -m slow",
    "thorough": "like a test that is run, but longer: run with --thorough, as CI does",
}
"""Marks of tests that run only where `-m` or an option names the mark, and why they are left out elsewhere."""


class ByFile(LoadScopeScheduling):
    """Keeps the tests of a file, or of a group of files, in one worker, where their fixtures are made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name, files in TOGETHER.items() if file.startswith(files)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Distribute the tests to the workers by file."""
    return ByFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--thorough`."""
    parser.addoption("--thorough", action="store_true", help="run the tests that are marked `thorough` too")


def pytest_configure() -> None:
    """Accept SIGINT, here and in the programs under test, also if a shell script started pytest in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, and skip `slow` and `thorough` tests unless `-m` or an option names their mark."""
    items.sort(
        key=lambda item: next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))
    )
    for mark, reason in LEFT_OUT.items():
        if mark in (config.option.markexpr or "") or config.getoption(mark, False):
            continue
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting all imported modules again and again: a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let everything be collected before the process ends, as extension modules expect."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose requirement is missing, or fail it where the environment requires it."""
    for mark, (present, variable, reason) in NEEDS.items():
        if item.get_closest_marker(mark) and not present():
            if os.environ.get(variable) == "1":
                pytest.fail(f"{variable}=1, but this test {reason}", pytrace=False)
            pytest.skip(reason)
