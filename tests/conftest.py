"""Marks that need a machine: without it a test says why it is skipped, or fails where it was required."""

import os
import shutil
import signal

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


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
    "ranks": ("tests/pipeline/engine/", "tests/pipeline/train/", "tests/pipeline/checkpoint/"),
    "mlflow": (
        "tests/pipeline/register/",
        "tests/pipeline/evaluate/",
        "tests/pipeline/test_serve.py",
        "tests/pipeline/tracking/",
    ),
}
"""Files whose tests run in one worker: they share a Slurm cluster, a preloaded parent of ranks, or a trained model."""

LONGEST = (
    "tests/slurm/",
    "tests/test_end_to_end.py",
    *TOGETHER["ranks"],
    "tests/transxnet/kernels/",
    *TOGETHER["mlflow"],
)
"""What starts first where the tests run in several workers."""


class ByFile(LoadScopeScheduling):
    """Keeps the tests of a file, or of files that belong together, in one worker, where fixtures are made once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name, files in TOGETHER.items() if file.startswith(files)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Deal the tests out by file."""
    return ByFile(config, log)


def pytest_configure() -> None:
    """Hear Ctrl-C, and let the programs under test hear it, also where a script started the tests in its background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, and leave `slow` tests to `-m slow`."""
    items.sort(
        key=lambda item: next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))
    )
    if "slow" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="minutes long: run with -m slow"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, a test whose machine is missing."""
    for mark, (present, variable, reason) in NEEDS.items():
        if item.get_closest_marker(mark) and not present():
            if os.environ.get(variable) == "1":
                pytest.fail(f"{variable}=1, but this test {reason}", pytrace=False)
            pytest.skip(reason)
