"""Several small shards of unequal size with generated photographs."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
import xxhash

from pipeline.config.schema import AugmentConfig, DataConfig, MixConfig, ModelConfig, TrainConfig
from sharding.index_table import FIRST_INDEX_SCHEMA, index_digest
from sharding.manifest import ClassInfo, Manifest, ShardInfo, write_manifest
from sharding.storage import Folder

CLASSES = 5


def photograph(number: int, height: int | None = None, width: int | None = None) -> bytes:
    """The JPEG with this number: smooth colours with some grain, different for each number."""
    generator = np.random.default_rng(number)
    height, width = height or int(generator.integers(40, 100)), width or int(generator.integers(40, 100))
    coarse = generator.integers(0, 256, (5, 6, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = generator.normal(0, 12, (height, width, 3))
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420" if number % 2 else "444")


def pack(folder: Path, shard_sizes: tuple[int, ...], split: str = "train", name: str = "small") -> Manifest:
    """Write shards of `shard_sizes` samples, with manifest and index, as before targets had places in the index."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list] = {column: [] for column in FIRST_INDEX_SCHEMA.names}
    shards, number = [], 0
    for shard, size in enumerate(shard_sizes):
        path = folder / f"{name}-{split}-{shard:04d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                data, key = photograph(number), f"photo_{number:05d}"
                entry = tarfile.TarInfo(f"{key}.jpg")
                entry.size = len(data)
                offset = tar.offset + 512
                tar.addfile(entry, io.BytesIO(data))
                height, width, _, _ = simplejpeg.decode_jpeg_header(data)
                values = (key, number % CLASSES, shard, offset, len(data), width, height, xxhash.xxh64_intdigest(data))
                for column, value in zip(FIRST_INDEX_SCHEMA.names, values, strict=True):
                    rows[column].append(value)
                number += 1
        shards.append(ShardInfo(path.name, size, path.stat().st_size, "0" * 64))
    index = pa.table(rows, schema=FIRST_INDEX_SCHEMA)
    manifest = Manifest(
        name=name,
        split=split,
        classes=tuple(ClassInfo(f"n{label:08d}", f"class {label}") for label in range(CLASSES)),
        shards=tuple(shards),
        index_sha256=index_digest(index),
        schema_version=1,
    )
    write_manifest(Folder.open(str(folder)), manifest, index)
    return manifest


def config(folder: Path | str, cache: Path, *, data: dict | None = None, **fields) -> TrainConfig:
    """A config over small shards: 32 px, global batches of 24."""
    values = {
        "global_batch_size": 24,
        "micro_batch_size": 4,
        "model": ModelConfig(name="transxnet_n", image_size=32),
        "data": DataConfig(
            **{"shards": str(folder), "workers": 0, "lanes": 4, "block_shards": 2, "cache_dir": str(cache)}
            | (data or {})
        ),
        "augment": AugmentConfig(),
        "mix": MixConfig(),
    }
    return TrainConfig(**values | fields)
