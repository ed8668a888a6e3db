"""Images with objects, from shards to a network's inputs, for any number of ranks and workers."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.schema import AugmentConfig, DetectionConfig
from pipeline.data.damaged_samples import DamagedSampleError
from pipeline.data.loader import build_train_loader
from pipeline.tasks import find_task
from pipeline.tasks.detection.objects import pack_objects, unpack_objects
from sharding import load_index, load_manifest
from tests.support.detections import training
from tests.support.objects import pack_objects as pack_shards

TASK = find_task("detection")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    pack_shards(folder)
    return folder / "shards"


def micro_batches(config, world_size: int) -> dict[int, list[tuple]]:
    """By step, each micro-batch of all ranks: its rows and the digest of the network's inputs."""
    transform, found = TASK.device_transform(config, 3), {}
    for rank in range(world_size):
        with build_train_loader(
            config, world_size=world_size, rank=rank, start_step=0, total_steps=4, device="cpu"
        ) as loader:
            for step in loader:
                for batch in step:
                    digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in transform(batch, "cpu"))).hexdigest()
                    found.setdefault(step.step, []).append((tuple(batch.indices.tolist()), digest))
    return {step: sorted(batches) for step, batches in found.items()}


def test_micro_batches_do_not_depend_on_ranks_and_workers(shards, tmp_path):
    alone = micro_batches(training(shards, tmp_path), 1)
    assert len(alone) == 4
    assert micro_batches(training(shards, tmp_path, workers=1), 2) == alone
    assert micro_batches(training(shards, tmp_path), 4) == alone


def test_one_micro_batch_of_a_step_at_most_mixes_orientations(shards, tmp_path):
    index = load_index(str(shards), load_manifest(str(shards), "train"))
    upright = (index["height"].to_numpy() > index["width"].to_numpy()).tolist()
    assert len(set(upright)) == 2
    for step in micro_batches(training(shards, tmp_path), 2).values():
        assert sum(len({upright[row] for row in rows}) == 2 for rows, _ in step) <= 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_masks_follow_their_image(shards, tmp_path, flip):
    """Each mask fills its box, up to the pixel to which resizing rounds; crowds are left out."""
    config = training(shards, tmp_path, augment=AugmentConfig(horizontal_flip=flip))
    transform, seen = TASK.device_transform(config, 3), 0
    with build_train_loader(config, world_size=1, rank=0, start_step=0, total_steps=2, device="cpu") as loader:
        for batch in (batch for step in loader for batch in step):
            images, sizes, counts, draws, boxes, labels, masks = transform(batch, "cpu")
            assert images.shape[-2:] == masks.shape[-2:]
            assert not any(side % 32 for side in images.shape[-2:])
            assert len(boxes) == len(labels) == counts.sum()
            assert counts.max() <= 2
            assert len(set(draws.tolist())) == len(set(batch.indices.tolist()))
            for (height, width), image in zip(sizes.tolist(), images, strict=True):
                assert not image[:, height:].any()
                assert not image[:, :, width:].any()
            for box, mask in zip(boxes.numpy(), masks.numpy(), strict=True):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert np.abs(box - around).max() <= 1.5
                seen += 1
    assert seen > 5


def test_a_sample_whose_objects_are_damaged_is_named_or_replaced(tmp_path, caplog):
    pack_shards(tmp_path)
    folder = tmp_path / "shards"
    config = training(folder, tmp_path / "cache")
    sound = micro_batches(config, 1)
    manifest = load_manifest(str(folder), "train")
    row = load_index(str(folder), manifest).to_pylist()[3]
    tar = folder / manifest.shards[row["shard"]].name
    content = bytearray(tar.read_bytes())
    content[row["target_offset"] + row["target_size"] // 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedSampleError, match=f"the target of sample {row['key']} .* was changed"):
        micro_batches(config, 1)
    replacing = replace(config, data=replace(config.data, on_damage="replace"))
    replaced = micro_batches(replacing, 1)
    assert any(f"the target of sample {row['key']}" in record.getMessage() for record in caplog.records)
    for step, batches in sound.items():
        others = dict(replaced[step])
        assert {rows for rows, digest in batches if others.get(rows) != digest} == {
            rows for rows, _ in batches if 3 in rows
        }
    assert micro_batches(replace(replacing, data=replace(replacing.data, workers=2)), 1) == replaced


def test_objects_are_unpacked_as_they_were(tmp_path):
    generator = np.random.default_rng(0)
    masks = [(generator.random((13, 17)) > 0.8).astype(np.uint8), np.zeros((13, 17), np.uint8)]
    boxes, labels = generator.random((2, 4), np.float32), np.array([4, 79])
    found = unpack_objects(pack_objects(boxes, labels, masks), (13, 17))
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks, masks)
    np.testing.assert_array_equal(found.boxes, boxes)
    assert found.labels.tolist() == [4, 79]
    none = unpack_objects(pack_objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None), (13, 17))
    assert none.boxes.shape == (0, 4)
    assert none.masks is None


def test_objects_without_room_are_refused_with_the_flag_that_makes_room(shards, tmp_path, monkeypatch):
    config = training(shards, tmp_path)
    monkeypatch.setattr("pipeline.tasks.detection.augment.pack_objects", lambda *_: bytes(70_000))
    config = replace(config, detection=DetectionConfig(scale=(96, 64), target_kb=64))
    with build_train_loader(config, world_size=1, rank=0, start_step=0, total_steps=1, device="cpu") as loader:
        step = next(iter(loader))
        with pytest.raises(DamagedSampleError, match=r"--train\.detection\.target-kb 69"):
            next(iter(step))
