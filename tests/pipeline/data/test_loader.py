"""The loader reads each sample once, with the same pixels for any number of workers and ranks."""

import contextlib
import hashlib
import os
import resource

import pytest
import torch

from pipeline.data.loader import build_train_loader
from pipeline.tasks.classification.device import DeviceTransform
from tests.pipeline.data.reading import SAMPLES, evaluation_loader, read
from tests.support.small_shards import CLASSES, config


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


def test_pixels_of_earlier_batches_are_not_overwritten(shards, cache):
    def everything(workers):
        settings = config(shards, cache, data={"workers": workers, "prefetch_batches": 3})
        with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=4, device="cpu") as loader:
            return [batch for batches in loader for batch in batches]

    for alone, by_workers in zip(everything(0), everything(2), strict=True):
        assert torch.equal(alone.images, by_workers.images)


def test_each_sample_is_augmented_anew_in_each_epoch(shards, cache):
    settings = config(shards, cache, global_batch_size=SAMPLES, micro_batch_size=SAMPLES)
    both, _ = read(settings, steps=(0, 2))
    assert len(both) == 2 * SAMPLES
    assert all(both[0, row][0] != both[1, row][0] for row in range(SAMPLES))


def test_skipping_micro_batches_is_an_error(shards, cache):
    with build_train_loader(
        config(shards, cache), world_size=1, rank=0, start_step=0, total_steps=2, device="cpu"
    ) as loader:
        steps = iter(loader)
        next(iter(next(steps)))
        with pytest.raises(RuntimeError, match="step 0 was left with 5 micro-batches"):
            next(steps)


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [(1, 0), (2, 0), (4, 1), *(pytest.param(*more, marks=pytest.mark.thorough) for more in ((1, 2), (3, 0)))],
)
def test_evaluation_sees_each_image_once_and_the_same_pixels(shards, cache, world_size, workers):
    settings = config(shards, cache, data={"workers": workers})
    seen = {}
    for rank in range(world_size):
        with evaluation_loader(settings, world_size=world_size, rank=rank) as loader:
            for batch in loader:
                for row, image, label in zip(batch.indices.tolist(), batch.images, batch.labels, strict=True):
                    assert row not in seen
                    assert int(label) == row % CLASSES
                    seen[row] = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    assert sorted(seen) == list(range(21))
    digest = hashlib.sha256("".join(seen[row] for row in range(21)).encode()).hexdigest()
    assert EVALUATED.setdefault("digest", digest) == digest


EVALUATED: dict[str, str] = {}


def test_a_cache_folder_that_cannot_be_made_is_named(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/cache cannot be made .*--train.data.cache-dir"):
        read(config(shards, tmp_path / "file/cache"))


def test_a_low_limit_of_open_files_damages_no_sample(shards, cache):
    """Fewer files may be open than there are shards: the samples are read all the same, and none is called damaged."""
    settings = config(shards, cache, data={"on_damage": "replace"})
    expected = read(settings)
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(4):
            os.close(taken.pop())
        assert read(settings) == expected
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def test_device_transforms_depend_only_on_sample_and_step(shards, cache):
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
