"""The record of a finished shard: the build keeps one per shard until it publishes the manifest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from sharding.index_table import INDEX_SCHEMA
from sharding.manifest import OddImage, ShardInfo


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard: its entries in the manifest and in the index.

    Attributes:
        number: position of the shard in the plan.
        plan: digest of the plan that the shard belongs to.
        shard: name, counts and digest of the tar.
        odd: images that were converted or skipped.
        rows: rows of the index; their `shard` column is `number`.
    """

    number: int
    plan: str
    shard: ShardInfo
    odd: tuple[OddImage, ...]
    rows: pa.Table

    @staticmethod
    def file_name(number: int) -> str:
        """Name of the file that holds the record of a shard."""
        return f"{number:06d}.part"

    def to_bytes(self) -> bytes:
        """Serialise the record: the rows as parquet, the rest in the metadata of the parquet file."""
        record = {"plan": self.plan, "shard": asdict(self.shard), "odd": [asdict(entry) for entry in self.odd]}
        sink = pa.BufferOutputStream()
        pq.write_table(self.rows.replace_schema_metadata({"part": json.dumps(record)}), sink)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, number: int, content: bytes) -> ShardRecord | None:
        """Parse a record; None where the file is incomplete or damaged."""
        try:
            rows = pq.read_table(pa.BufferReader(content))
            if not rows.schema.equals(INDEX_SCHEMA, check_metadata=False):
                return None  # an earlier version, which did not know where the targets are, wrote it
            record = json.loads((rows.schema.metadata or {})[b"part"])
            return cls(
                number=number,
                plan=record["plan"],
                shard=ShardInfo(**record["shard"]),
                odd=tuple(OddImage(**entry) for entry in record["odd"]),
                rows=rows.replace_schema_metadata(None),
            )
        except (pa.ArrowException, KeyError, ValueError, TypeError):
            return None
