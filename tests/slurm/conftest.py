"""Rehearsal clusters, each started once for all tests that use it."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, rehearsal
from tests.slurm.config import Settings
from tests.slurm.hosts import why_not


def _started(factory: pytest.TempPathFactory, settings: Settings) -> Iterator[Cluster]:
    with rehearsal(factory.mktemp("slurm") / "cluster", settings, shared=[factory.getbasetemp()]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def plain_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that preempts with TERM only, which is Slurm's default."""
    yield from _started(tmp_path_factory, Settings())


@pytest.fixture(scope="session")
def signalling_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that also sends the job's own signal at a preemption, and claims two GPUs on each node."""
    yield from _started(tmp_path_factory, Settings(user_signal=True, gpus=2))


@pytest.fixture(scope="session")
def hosts_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose nodes are hosts of their own."""
    if reason := why_not():
        pytest.skip(reason)
    yield from _started(tmp_path_factory, Settings(hosts=True))


def _entered(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.clear()


@pytest.fixture
def slurm(plain_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The plain cluster, without jobs and with all nodes up."""
    yield from _entered(plain_cluster, monkeypatch)


@pytest.fixture
def signalling_slurm(signalling_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The signalling cluster, without jobs and with all nodes up."""
    yield from _entered(signalling_cluster, monkeypatch)


@pytest.fixture
def slurm_with_hosts_if_possible(request: pytest.FixtureRequest) -> Cluster:
    """The cluster of hosts, or the plain one where hosts cannot be made."""
    return request.getfixturevalue("slurm" if why_not() else "hosts")


@pytest.fixture
def hosts(hosts_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster of hosts, without jobs and with all hosts up and connected."""
    yield from _entered(hosts_cluster, monkeypatch)
