"""Damaged shards stop the training with shard and key, or are replaced where the user asked for it."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.schema import AugmentConfig
from pipeline.data.damaged_samples import DamagedSampleError
from pipeline.data.loader import build_train_loader
from pipeline.data.reader import LoaderError, SampleReader
from tests.pipeline.data.reading import read
from tests.support.small_shards import config, pack


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
@pytest.mark.parametrize("how", ["flipped byte", pytest.param("truncated", marks=pytest.mark.thorough)])
def test_a_damaged_sample_stops_the_training_with_shard_and_key(shards, cache, tmp_path, how, workers):
    name = damage(shards, tmp_path / "copy", how)
    said = rf"sample photo_000\d\d of .*{name} (is cut off|was changed).* sharding.verify .* --train.data.on-damage rep"
    with pytest.raises(DamagedSampleError, match=said):
        read(config(tmp_path / "copy", cache, data={"workers": workers}), steps=(0, 5))


def test_damaged_samples_are_replaced_deterministically_counted_and_limited(shards, cache, tmp_path, caplog):
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


@pytest.mark.parametrize("mode", ["fast", "faithful"])
@pytest.mark.parametrize(
    "undecodable",
    [b"P6 60 5O 255 " + bytes(9000), b"P6 60 50 255 " + bytes(8999), b"no image"],
    ids=["ValueError of Pillow", "truncated", "unknown format"],
)
def test_a_sample_that_no_decoder_reads_is_damaged_in_both_modes(cache, tmp_path, monkeypatch, mode, undecodable):
    """The bytes are those of the index, but no image."""
    intact = SampleReader._read
    monkeypatch.setattr(
        SampleReader, "_read", lambda self, place: undecodable if place.row == 3 else intact(self, place)
    )
    pack(tmp_path / "few", (8, 8, 8))
    settings = config(tmp_path / "few", cache, augment=AugmentConfig(mode=mode))
    with pytest.raises(DamagedSampleError, match=r"sample photo_00003 of .* cannot be decoded: "):
        read(settings, steps=(0, 1))
    replacing = config(tmp_path / "few", cache, augment=AugmentConfig(mode=mode), data={"on_damage": "replace"})
    _, order = read(replacing, steps=(0, 1))
    assert len(order) == 24


def test_a_missing_shard_is_named(shards, cache, tmp_path):
    name = damage(shards, tmp_path / "copy", "truncated")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(DamagedSampleError, match=rf"{name} cannot be opened: No such file"):
        read(config(tmp_path / "copy", cache), steps=(0, 5))


def test_an_exception_in_a_worker_is_raised_with_the_samples_key(shards, cache, tmp_path):
    settings = config(shards, cache, data={"workers": 1})
    with build_train_loader(settings, world_size=1, rank=0, start_step=0, total_steps=4, device="cpu") as loader:
        index = Path(loader._index.folder)
    rows = np.load(index / "rows.npy")
    rows["offset"] = -1
    np.save(index / "rows.npy", rows)
    with pytest.raises(LoaderError, match=r"sample photo_\d+ of .*tar could not be read: .*Invalid argument"):
        read(settings)
