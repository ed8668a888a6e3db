"""The loader: the same bytes whoever reads them, nothing lost, nothing twice, and damage that has a name."""

import hashlib
import resource
import signal
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
import pyarrow.compute as pc
import pytest
import torch

from pipeline.data.audit import AuditWriter, read_audit
from pipeline.data.batch import Batch
from pipeline.data.device import DeviceTransform
from pipeline.data.loader import build_evaluation_loader, build_train_loader
from pipeline.data.reader import DamagedSampleError, LoaderError
from tests.support.small_shards import CLASSES, config, pack

SHARDS = (17, 9, 23, 4, 30, 12, 5)
SAMPLES = sum(SHARDS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    pack(folder, SHARDS)
    pack(folder, (13, 8), split="validation")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def read(settings, *, world_size=1, rank=0, steps=(0, 4)):
    """Everything a rank reads: {(step, sample): digest of pixels and label}, and the rows in the order of reading."""
    read, order = {}, []
    with build_train_loader(
        settings, world_size=world_size, rank=rank, start_step=steps[0], total_steps=steps[1], device="cpu"
    ) as loader:
        for batches in loader:
            for batch in batches:
                assert batch.images.shape[1:] == (3, 32, 32)
                for i, row in enumerate(batch.indices.tolist()):
                    pixels = batch.images[i].contiguous().numpy().tobytes()
                    digest = hashlib.sha256(pixels).hexdigest()
                    read[batch.step, row] = (digest, int(batch.labels[i]))
                    order.append((batch.step, batch.micro_step, row))
    return read, order


def test_pixels_depend_neither_on_workers_nor_ranks_nor_interruptions(shards, cache):
    alone, order = read(config(shards, cache))
    assert len(alone) == 4 * 24
    assert {label for _, label in alone.values()} == set(range(CLASSES))
    by_workers, order_by_workers = read(config(shards, cache, data={"workers": 2, "prefetch_batches": 2}))
    assert by_workers == alone
    assert order_by_workers == order
    for world_size in (2, 3):
        by_ranks = {}
        for rank in range(world_size):
            part, _ = read(config(shards, cache), world_size=world_size, rank=rank)
            assert not by_ranks.keys() & part.keys()
            by_ranks |= part
        assert by_ranks == alone
    later, later_order = read(config(shards, cache), steps=(2, 4))
    assert later_order == [entry for entry in order if entry[0] >= 2]
    assert later.items() <= alone.items()


def test_batches_that_are_held_keep_their_pixels(shards, cache):
    def everything(workers):
        settings = config(shards, cache, data={"workers": workers, "prefetch_batches": 3})
        with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=4, device="cpu") as loader:
            return [batch for batches in loader for batch in batches]

    for alone, by_workers in zip(everything(0), everything(2), strict=True):
        assert torch.equal(alone.images, by_workers.images)


def test_loaders_that_are_closed_leave_no_descriptors(shards, cache):
    def once():
        with build_evaluation_loader(
            config(shards, cache, data={"workers": 1}), world_size=1, rank=0, device="cpu"
        ) as loader:
            next(iter(loader))

    once()
    before = psutil.Process().num_fds()
    once()
    assert psutil.Process().num_fds() == before


def test_each_sample_is_augmented_anew_in_each_epoch(shards, cache):
    settings = config(shards, cache, global_batch_size=SAMPLES, micro_batch_size=SAMPLES)
    both, _ = read(settings, steps=(0, 2))
    assert len(both) == 2 * SAMPLES
    assert all(both[0, row][0] != both[1, row][0] for row in range(SAMPLES))


def test_a_step_must_be_read_to_its_end(shards, cache):
    with build_train_loader(
        config(shards, cache), world_size=1, rank=0, start_step=0, total_steps=2, device="cpu"
    ) as loader:
        steps = iter(loader)
        next(iter(next(steps)))
        with pytest.raises(RuntimeError, match="step 0 was left with 5 micro-batches"):
            next(steps)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (3, 0), (4, 1)])
def test_evaluation_sees_each_image_once_and_the_same_pixels(shards, cache, world_size, workers):
    settings = config(shards, cache, data={"workers": workers})
    seen = {}
    for rank in range(world_size):
        with build_evaluation_loader(settings, world_size=world_size, rank=rank, device="cpu") as loader:
            assert loader.num_samples == 21
            for batch in loader:
                for row, image, label in zip(batch.indices.tolist(), batch.images, batch.labels, strict=True):
                    assert row not in seen
                    assert int(label) == row % CLASSES
                    seen[row] = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    assert sorted(seen) == list(range(21))
    digest = hashlib.sha256("".join(seen[row] for row in range(21)).encode()).hexdigest()
    assert EVALUATED.setdefault("digest", digest) == digest


EVALUATED: dict[str, str] = {}


def damage(shards: Path, copy: Path, how: str) -> str:
    """Copy the shards and damage one; the name of the shard."""
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    victim = copy / "small-train-0002.tar"
    data = bytearray(victim.read_bytes())
    if how == "flipped byte":
        data[len(data) // 2] ^= 1
    else:
        del data[len(data) // 2 :]
    victim.write_bytes(data)
    return victim.name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["flipped byte", "truncated"])
def test_damage_stops_with_shard_and_key(shards, cache, tmp_path, how, workers):
    name = damage(shards, tmp_path / "copy", how)
    said = rf"sample photo_000\d\d of .*{name} (is cut off|was changed).* sharding.verify .* --train.data.on-damage rep"
    with pytest.raises(DamagedSampleError, match=said):
        read(config(tmp_path / "copy", cache, data={"workers": workers}), steps=(0, 5))


def test_damaged_samples_are_replaced_alike_everywhere_counted_and_limited(shards, cache, tmp_path, caplog):
    copy = tmp_path / "copy"
    damage(shards, copy, "truncated")
    settings = config(copy, cache, data={"on_damage": "replace"})
    replaced, order = read(settings)
    assert len(order) == 4 * 24
    lines = [record.getMessage() for record in caplog.records if "replaced a damaged sample (" in record.getMessage()]
    assert lines
    assert all("small-train-0002.tar" in line for line in lines)
    by_workers, _ = read(config(copy, cache, data={"on_damage": "replace", "workers": 2}))
    assert by_workers == replaced
    sound, _ = read(config(shards, cache))
    assert sum(replaced[key] != sound[key] for key in sound) == len(lines)
    with pytest.raises(DamagedSampleError, match=r"more than --train.data.max-replacements 2"):
        read(config(copy, cache, data={"on_damage": "replace", "max_replacements": 2}))


def test_a_shard_that_is_gone_is_named(shards, cache, tmp_path):
    name = damage(shards, tmp_path / "copy", "truncated")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(DamagedSampleError, match=rf"{name} cannot be opened: No such file"):
        read(config(tmp_path / "copy", cache), steps=(0, 5))


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


ORPHAN = """
import sys
from pathlib import Path
from pipeline.data.loader import build_train_loader
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


def test_an_exception_in_a_worker_reaches_the_user_with_the_key(shards, cache, tmp_path):
    settings = config(shards, cache, data={"workers": 1})
    with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=4, device="cpu") as loader:
        index = Path(loader._index.folder)
    rows = np.load(index / "rows.npy")
    rows["offset"] = -1
    np.save(index / "rows.npy", rows)
    with pytest.raises(LoaderError, match=r"sample photo_\d+ of .*tar could not be read: .*Invalid argument"):
        read(settings)


def test_a_cache_folder_that_cannot_be_made_is_named(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/cache cannot be made .*--train.data.cache-dir"):
        read(config(shards, tmp_path / "file/cache"))


def test_the_audit_covers_each_epoch_once_over_kills_and_other_world_sizes(shards, cache, tmp_path):
    run, steps = tmp_path / "run", -(-3 * SAMPLES // 24)

    def attempt(world_size: int, start: int, saved: int, stop: int) -> None:
        """Train from a checkpoint at `start`, save one at `saved`, and be killed before `stop` with nothing flushed."""
        for rank in range(world_size):
            with build_train_loader(
                config(shards, cache),
                world_size=world_size,
                rank=rank,
                start_step=start,
                total_steps=stop,
                device="cpu",
            ) as loader:
                audit = AuditWriter(run, rank, start_step=start, keys=loader.keys)
                for batches in loader:
                    for batch in batches:
                        audit.add(batch)
                    if batches.step + 1 in (saved, saved + 2):
                        audit.flush()  # the second one is of a checkpoint that was never published

    attempt(1, 0, 3, 7)
    attempt(2, 3, 6, 9)
    attempt(3, 6, steps, steps)
    table = read_audit(run)
    endless = table["epoch"].to_numpy() * SAMPLES + table["sample"].to_numpy()
    assert len(endless) == steps * 24
    for epoch in range(3):
        rows = table.filter(pc.equal(table["epoch"], epoch))
        assert sorted(rows["sample"].to_pylist()) == list(range(SAMPLES))
        assert sorted(rows["key"].to_pylist()) == [f"photo_{number:05d}" for number in range(SAMPLES)]
    assert len(set(endless.tolist())) == len(endless)
    assert set(table["rank"].to_pylist()) == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_over_epochs(shards, cache, workers):
    """Of 38 epochs; what the processes share is left out."""
    settings = config(shards, cache, global_batch_size=64, micro_batch_size=64, data={"workers": workers})
    with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=60, device="cpu") as loader:
        processes, sizes = [psutil.Process(), *children()], []
        for batches in loader:
            list(batches)
            memory = [process.memory_info() for process in processes]
            sizes.append(sum(info.rss - info.shared for info in memory))
    assert sizes[-1] - sizes[20] < 4e6


def test_the_wait_for_data_is_measured(shards, cache):
    """Workers that stand still for half a second are waited for as long, and no step waits longer than it lasts."""
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


def test_what_the_device_does_depends_on_the_sample_and_the_step_alone(shards, cache):
    """Images before mixing are the same for 1 and 3 ranks; the mixing weight of a step is the same on all."""
    results = []
    for world_size in (1, 3):
        images, weights = {}, {}
        for rank in range(world_size):
            settings = config(shards, cache)
            transform = DeviceTransform(settings.augment, settings.mix, CLASSES, settings.seed)
            unmixed = DeviceTransform(settings.augment, type(settings.mix)(mixup=0, cutmix=0), CLASSES, settings.seed)
            with build_train_loader(
                settings, world_size=world_size, rank=rank, start_step=0, total_steps=3, device="cpu"
            ) as loader:
                for batches in loader:
                    for batch in batches:
                        for row, image in zip(batch.indices.tolist(), unmixed(batch, "cpu")[0], strict=True):
                            images[batch.step, row] = image.numpy().tobytes()
                        _, targets = transform(batch, "cpu")
                        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
                        tops = {
                            round(float(t.max()), 5)
                            for t, a, b in zip(targets, batch.labels, batch.labels.flip(0), strict=True)
                            if a != b
                        }
                        weights.setdefault(batch.step, set()).update(tops)
        assert all(len(tops) == 1 for tops in weights.values())
        results.append((images, weights))
    assert results[0] == results[1]


def test_an_audit_that_the_disk_does_not_take_is_written_by_the_next_flush(tmp_path: Path):
    rows = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 1, 1), rows, rows, 0 * rows, 0 * rows - 1, step=7, micro_step=0)
    audit = AuditWriter(tmp_path, 0, start_step=0, keys=lambda rows: [str(row) for row in rows])
    audit.add(batch)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        audit.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "audit").iterdir())
    audit.flush()
    assert read_audit(tmp_path)["sample"].to_pylist() == rows.tolist()
