"""Crops and whole images from shards with label maps, for any number of ranks and workers."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema import AugmentConfig, DataConfig, MixConfig, ModelConfig, SegmentationConfig, TrainConfig
from pipeline.data.damaged_samples import DamagedSampleError
from pipeline.data.loader import build_evaluation_loader, build_train_loader
from pipeline.tasks.segmentation.augment import PADDING
from pipeline.tasks.segmentation.device import NormalisedCrops
from sharding import load_index, load_manifest
from tests.support.label_maps import SPLITS, label_map, pack_masks

STEPS = 4
OPTIONS = SegmentationConfig(crop_size=64, scale=(128, 64), scale_ratio=(0.5, 2.0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("label-maps")
    pack_masks(folder)
    return folder / "shards"


def training(shards: Path, cache: Path, workers: int = 0) -> TrainConfig:
    return TrainConfig(
        task="segmentation",
        seed=3,
        global_batch_size=4,
        model=ModelConfig(name="semantic_fpn_n", image_size=64),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        segmentation=OPTIONS,
        data=DataConfig(shards=str(shards), workers=workers, lanes=2, cache_dir=str(cache)),
    )


def crops(config: TrainConfig, *, world_size: int = 1, start_step: int = 0) -> dict[tuple[int, int, int], str]:
    """Digest of pixels and classes of each sample, by step, epoch and row."""
    found = {}
    for rank in range(world_size):
        with build_train_loader(
            config, world_size=world_size, rank=rank, start_step=start_step, total_steps=STEPS, device="cpu"
        ) as loader:
            for batches in loader:
                for batch in batches:
                    places = zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True)
                    for place, image, labels in zip(places, batch.images, batch.labels, strict=True):
                        data = image.permute(1, 2, 0).contiguous().numpy().tobytes() + labels.numpy().tobytes()
                        found[batch.step, *place] = hashlib.sha256(data).hexdigest()
    return found


def test_crops_are_the_same_for_any_number_of_ranks_workers_and_interruptions(shards, tmp_path):
    alone = crops(training(shards, tmp_path))
    assert len(alone) == STEPS * 4
    assert len(set(alone.values())) == len(alone)
    assert crops(training(shards, tmp_path), world_size=2) == alone
    assert crops(training(shards, tmp_path, workers=2), world_size=4) == alone
    later = {place: digest for place, digest in alone.items() if place[0] >= 2}
    assert crops(training(shards, tmp_path, workers=1), start_step=2) == later
    assert crops(replace(training(shards, tmp_path), seed=4)) != alone


def test_crops_hold_classes_and_what_lies_beside_the_image_is_ignored(shards, tmp_path):
    config = training(shards, tmp_path)
    with build_train_loader(config, world_size=1, rank=0, start_step=0, total_steps=STEPS, device="cpu") as loader:
        batches = [batch for step in loader for batch in step]
    labels = torch.cat([batch.labels for batch in batches])
    assert set(labels.unique().tolist()) == {0, 1, 2, 255, PADDING}
    batch = next(batch for batch in batches if (batch.labels == PADDING).any())
    images, classes = NormalisedCrops(config.augment)(batch, "cpu")
    padding = batch.labels == PADDING
    assert set(classes[padding].tolist()) == {255}
    assert (images.permute(0, 2, 3, 1)[padding] == 0).all()
    assert (images.permute(0, 2, 3, 1)[~padding] != 0).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_reads_whole_images_with_their_own_classes(shards, tmp_path, workers):
    data = DataConfig(shards=str(shards), workers=workers, cache_dir=str(tmp_path))
    expected = {0: 0, 1: 1, 5: 2, 255: 255}
    seen = 0
    with build_evaluation_loader(
        data, AugmentConfig(), 64, world_size=1, rank=0, device="cpu", task="segmentation", segmentation=OPTIONS
    ) as loader:
        for batch in loader:
            assert batch.images.shape[0] == 1
            assert all(side % 32 == 0 for side in batch.images.shape[2:])
            assert min(batch.images.shape[2:]) <= 64 < max(batch.images.shape[2:]) + 32
            [key] = loader.keys(batch.indices)
            height, width = batch.labels.shape[1:]
            values = label_map(int(key), height, width)
            assert (batch.labels[0].numpy() == np.vectorize(expected.get)(values)).all()
            seen += 1
    assert seen == SPLITS["validation"]


def test_a_flipped_byte_in_a_label_map_is_found_and_named(tmp_path):
    pack_masks(tmp_path)
    shards = tmp_path / "shards"
    manifest = load_manifest(str(shards), "train")
    row = load_index(str(shards), manifest).to_pylist()[3]
    tar = shards / manifest.shards[row["shard"]].name
    content = bytearray(tar.read_bytes())
    content[row["target_offset"] + row["target_size"] // 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedSampleError, match=f"the target of sample {row['key']} .* was changed"):
        crops(replace(training(shards, tmp_path / "cache"), global_batch_size=13))


def test_a_sample_whose_label_map_is_damaged_is_replaced_where_the_user_asked_for_it(tmp_path, caplog):
    pack_masks(tmp_path)
    shards = tmp_path / "shards"
    config = replace(training(shards, tmp_path / "cache"), global_batch_size=13)
    sound = crops(config)
    manifest = load_manifest(str(shards), "train")
    row = load_index(str(shards), manifest).to_pylist()[3]
    tar = shards / manifest.shards[row["shard"]].name
    content = bytearray(tar.read_bytes())
    content[row["target_offset"] + row["target_size"] // 2] ^= 1
    tar.write_bytes(content)
    replacing = replace(config, data=replace(config.data, on_damage="replace"))
    replaced = crops(replacing)
    assert {place[2] for place in sound if replaced[place] != sound[place]} == {3}
    assert any(f"the target of sample {row['key']}" in record.getMessage() for record in caplog.records)
    assert crops(replace(replacing, data=replace(replacing.data, workers=2)), world_size=1) == replaced
