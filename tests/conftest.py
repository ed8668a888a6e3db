"""Marks that need a machine: without it a test says why it is skipped, or fails where it was required."""

import os
import shutil
import signal

import pytest


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


LONGEST = ("test_end_to_end", "test_kernels_operators", "test_engine")


def _starts_early(file: str, slurm: bool) -> int:
    return 0 if slurm else 1 + (LONGEST.index(file) if file in LONGEST else len(LONGEST))


def pytest_configure() -> None:
    """Hear Ctrl-C, and let the programs under test hear it, also where a script started the tests in its background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a file's tests in one worker (Slurm's, with their one cluster, too), the longest files first.

    `slow` tests are left to `-m slow`.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group("slurm" if item.get_closest_marker("slurm") else item.path.stem))
    items.sort(key=lambda item: _starts_early(item.path.stem, item.get_closest_marker("slurm") is not None))
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
