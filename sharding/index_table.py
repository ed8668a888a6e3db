"""The index of a split as a table: its columns, its digest, its file."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("xxh64", pa.uint64()),
        ("target_offset", pa.int64()),
        ("target_size", pa.int32()),
        ("target_xxh64", pa.uint64()),
    ]
)
FIRST_INDEX_SCHEMA = pa.schema(list(INDEX_SCHEMA)[:8])
"""Columns of an index of schema version 1, which knows the images alone."""


def index_digest(table: pa.Table) -> str:
    """SHA-256 in hex of the content of an index, independent of how parquet encodes it."""
    digest = hashlib.sha256(str(table.num_rows).encode())
    for number, keys in enumerate(table.select(["key"]).to_batches(max_chunksize=1 << 16)):
        digest.update(("\n" * (number > 0) + "\n".join(keys[0].to_pylist())).encode())
    for column in table.column_names[1:]:
        values = np.ascontiguousarray(table[column].to_numpy())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def repeated_keys(index: pa.Table) -> list[str]:
    """The keys that more than one row of an index has, sorted."""
    keys, counts = np.unique(index["key"].to_numpy(zero_copy_only=False), return_counts=True)
    return keys[counts > 1].tolist()


def index_bytes(table: pa.Table) -> bytes:
    """Serialise an index as a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 17)
    return sink.getvalue().to_pybytes()
