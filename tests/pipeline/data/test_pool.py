"""The loader's worker processes: signals, kills, memory, and the time that a step waits for data."""

import signal
import subprocess
import sys
import threading
import time
from itertools import chain

import psutil
import pytest

from pipeline.data.loader import build_train_loader
from pipeline.data.reader import LoaderError
from tests.pipeline.data.reading import evaluation_loader
from tests.support.small_shards import config


def children() -> list[psutil.Process]:
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "pipeline.data.worker" in " ".join(child.cmdline())]


def test_workers_survive_preemption_signals_and_a_killed_one_is_reported(shards, cache):
    settings = config(shards, cache, data={"workers": 2, "prefetch_batches": 1})
    loader = build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=1000, device="cpu")
    with loader:
        workers = children()
        assert len(workers) == 2
        steps = iter(loader)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            for worker in workers:
                worker.send_signal(number)  # also while they start
            list(next(steps))
        assert all(worker.is_running() for worker in workers)
        for worker in workers:
            worker.kill()
        with pytest.raises(
            LoaderError, match=r"was killed by signal 9; out of memory\? Take fewer --train.data.workers"
        ):
            list(chain.from_iterable(steps))
    assert not children()


def test_a_worker_that_dies_by_a_signal_is_reported_with_what_it_was_reading(shards, cache):
    settings = config(shards, cache, global_batch_size=64, micro_batch_size=64, data={"workers": 1})
    with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=1000, device="cpu") as loader:
        steps = iter(loader)
        list(next(steps))
        reading, (worker,) = loader._source._pool.slots.reading, children()
        worker.suspend()
        while reading[0] < 0:  # it had finished its chunk
            worker.resume()
            list(next(steps))
            worker.suspend()
        (key,) = loader.keys(reading)
        worker.send_signal(signal.SIGSEGV)
        worker.resume()
        found = rf"was killed by signal 11; .*python -m sharding.verify; it was reading sample {key} of .*\.tar"
        with pytest.raises(LoaderError, match=found):
            list(chain.from_iterable(steps))


ORPHAN = """
import sys
from pathlib import Path
from pipeline.data.loader import build_train_loader
from tests.pipeline.data.reading import evaluation_loader
from tests.support.small_shards import config
settings = config(sys.argv[1], Path(sys.argv[2]), data={"workers": 2})
loader = build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=1000, device="cpu")
list(next(iter(loader)))
print(*loader._source._pool.pids, flush=True)
sys.stdin.read()
"""


def test_workers_do_not_outlive_their_parent(shards, cache):
    command = [sys.executable, "-c", ORPHAN, str(shards), str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_over_epochs(shards, cache, workers):
    """Private memory of all processes over 38 epochs."""
    settings = config(shards, cache, global_batch_size=64, micro_batch_size=64, data={"workers": workers})
    with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=60, device="cpu") as loader:
        processes, sizes = [psutil.Process(), *children()], []
        for batches in loader:
            list(batches)
            memory = [process.memory_info() for process in processes]
            sizes.append(sum(info.rss - info.shared for info in memory))
    assert sizes[-1] - sizes[20] < 4e6


def test_the_time_waited_for_data_is_measured(shards, cache):
    """A worker suspended for half a second shows as that much waiting, and no step waits longer than it lasts."""
    settings = config(shards, cache, data={"workers": 1, "prefetch_batches": 1})
    with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=10, device="cpu") as loader:
        steps, waited = iter(loader), 0.0
        list(next(steps))
        children()[0].suspend()
        threading.Timer(0.5, children()[0].resume).start()
        for batches in steps:
            started = time.perf_counter()
            list(batches)
            assert 0 < loader.data_wait_s <= time.perf_counter() - started
            waited += loader.data_wait_s
    assert waited > 0.4


@pytest.mark.thorough
def test_loaders_that_are_closed_leave_no_descriptors(shards, cache):
    def once():
        with evaluation_loader(config(shards, cache, data={"workers": 1})) as loader:
            next(iter(loader))

    once()
    before = psutil.Process().num_fds()
    once()
    assert psutil.Process().num_fds() == before


READ_AT_384 = """
import sys
from pathlib import Path
from pipeline.config.schema import ModelConfig
from pipeline.data.loader import build_train_loader
from tests.support.small_shards import config

shards, cache = map(Path, sys.argv[1:])
model = ModelConfig(name="transxnet_n", image_size=384)
settings = config(shards, cache, model=model, micro_batch_size=24, data={"workers": 2})
with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=3, device="cpu") as loader:
    print([tuple(batch.images.shape) for batches in loader for batch in batches])
"""


@pytest.mark.slow  # starts a process of its own
def test_a_small_dev_shm_does_not_limit_the_loader(shards, tmp_path):
    """Containers have 64 MB there; the batches of this loader, 11 MB each, do without it."""
    inner = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" -c "$1" "$2" "$3"'
    command = ["unshare", "-m", "sh", "-c", inner, sys.executable, READ_AT_384, str(shards), str(tmp_path / "cache")]
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a mount namespace")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[(24, 3, 384, 384)] * 3}\n"
