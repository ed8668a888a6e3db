"""The record of a finished shard, kept until the manifest is published."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from sharding.manifest import OddImage, ShardInfo


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished shard: what the manifest and the index will say of it.

    Attributes:
        number: position of the shard in the plan.
        plan: digest of the plan it belongs to.
        shard: name, counts and digest.
        odd: images converted or skipped.
        rows: index rows, `shard` column set to `number`.
    """

    number: int
    plan: str
    shard: ShardInfo
    odd: tuple[OddImage, ...]
    rows: pa.Table

    @staticmethod
    def file_name(number: int) -> str:
        """Name of the file that records a finished shard."""
        return f"{number:06d}.part"

    def to_bytes(self) -> bytes:
        """The record as a file: the rows in parquet, the rest in its metadata."""
        record = {"plan": self.plan, "shard": asdict(self.shard), "odd": [asdict(entry) for entry in self.odd]}
        sink = pa.BufferOutputStream()
        pq.write_table(self.rows.replace_schema_metadata({"part": json.dumps(record)}), sink)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, number: int, content: bytes) -> Part | None:
        """Read a record; None where it is not whole."""
        try:
            rows = pq.read_table(pa.BufferReader(content))
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
