"""What a packed split is: its manifest, its index, and the `_info.json` that timm reads.

The manifest is the promise (counts, digests, settings), the index is the way in (where each image lies).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.errors import ManifestError
from sharding.storage import Folder
from sharding.unfinished import is_unfinished

SCHEMA_VERSION = 1
MAX_CLASSES = 1_000_000  # ImageNet-21k has 21,841
# imagenet1k-train-0000.tar
SHARD_NAME = re.compile(r"^(?P<name>.+)-(?P<split>[A-Za-z][A-Za-z0-9_]*)-(?P<number>[0-9]+)\.tar$")
_MARK = b'"index_sha256"'  # in every manifest, and in hardly any other JSON file

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
    ]
)


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class: its WordNet id (or the name of its folder) and its name in words."""

    wnid: str
    name: str


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar file: its name, how many samples and bytes it has, and the SHA-256 of the file in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OddImage:
    """An image that did not go in as it was.

    Attributes:
        key: of the sample.
        file: what the source calls it.
        reason: what was odd, such as `CMYK JPEG`, `PNG` or `broken EXIF`.
        action: `converted` or `skipped`.
    """

    key: str
    file: str
    reason: str
    action: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed split.

    Attributes:
        schema_version: of the JSON file.
        name: prefix of all files, such as `imagenet1k`.
        split: such as `train` or `validation`.
        classes: label `i` means `classes[i]`.
        shards: in order; the index's `shard` column counts in it.
        settings: of the builder, and the digest of what it listed in the source.
        odd: images that were converted or left out.
        index_sha256: of the index's content, see `index_digest`.
    """

    name: str
    split: str
    classes: tuple[ClassInfo, ...]
    shards: tuple[ShardInfo, ...]
    index_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    odd: tuple[OddImage, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def num_samples(self) -> int:
        """Images in the split."""
        return sum(shard.samples for shard in self.shards)

    @property
    def stem(self) -> str:
        """What the names of this split's files begin with."""
        return f"{self.name}-{self.split}"

    @property
    def digest(self) -> str:
        """SHA-256 in hex over everything the manifest says."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as a JSON file, with its digest."""
        return json.dumps({**self._content(), "digest": self.digest}, indent=1, ensure_ascii=False) + "\n"

    def _content(self) -> dict[str, Any]:
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "split": self.split,
            "num_samples": self.num_samples,
            "classes": [asdict(entry) for entry in self.classes],
            "shards": [asdict(entry) for entry in self.shards],
            "index_sha256": self.index_sha256,
            "settings": dict(self.settings),
            "odd": [asdict(entry) for entry in self.odd],
        }

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read a manifest and check its digest.

        Args:
            text: content of the file.
            where: its name, for messages.

        Raises:
            ManifestError: it is no manifest, is of a newer version, or its digest does not fit.
        """
        try:
            content = json.loads(text)
            version = content["schema_version"]
            if version != SCHEMA_VERSION:
                raise ManifestError(f"{where} has schema version {version}; this version reads {SCHEMA_VERSION}")
            manifest = cls(
                name=content["name"],
                split=content["split"],
                classes=tuple(ClassInfo(**entry) for entry in content["classes"]),
                shards=tuple(ShardInfo(**entry) for entry in content["shards"]),
                index_sha256=content["index_sha256"],
                settings=content["settings"],
                odd=tuple(OddImage(**entry) for entry in content["odd"]),
            )
            digest = content["digest"]
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ManifestError(f"{where} is not a manifest of shards: {error!r}") from error
        if where.rpartition("/")[2] != f"{manifest.stem}.json":
            raise ManifestError(
                f"{where} is the manifest of {manifest.stem}: its name must be {manifest.stem}.json. Move it "
                "elsewhere, or give it and its shards their names back."
            )
        if digest != manifest.digest:
            raise ManifestError(
                f"{where} was changed after it was written: its digest does not fit. Put back the former one, pack "
                "into another folder, or remove it and describe the shards anew: python -m sharding.index"
            )
        return manifest


def shards_of(folder: Folder, stem: str) -> list[str]:
    """Names of the tars in a folder that are called as the shards of the split NAME-SPLIT."""
    return [file for file in folder.names() if re.fullmatch(re.escape(stem) + r"-[0-9]+\.tar", file)]


def find_manifests(folder: Folder) -> dict[tuple[str, str], Manifest]:
    """All manifests directly inside a folder, by (name, split); other JSON files are passed over.

    Raises:
        ManifestError: one is damaged.
    """
    found = {}
    names = set(folder.names())
    for name in sorted(names):
        stem = name.removesuffix(".json")
        if stem == name or "-" not in stem or name.startswith((".", "_")):
            continue
        content = folder.read(name)
        if f"{stem}.parquet" not in names and _MARK not in content:
            continue
        manifest = Manifest.from_json(content.decode("utf-8", "replace"), f"{folder.location}/{name}")
        found[manifest.name, manifest.split] = manifest
    return found


def load_manifest(location: str, split: str, name: str | None = None) -> Manifest:
    """Read the manifest of a split.

    Args:
        location: folder or URI of the shards.
        split: such as `train` or `validation`.
        name: prefix of the shards; None takes the only one there.

    Raises:
        ManifestError: the folder, or such a manifest in it, is missing or damaged.
    """
    folder = Folder.open(location)
    if name is not None and folder.size(f"{name}-{split}.json") is not None:
        file = f"{name}-{split}.json"
        return Manifest.from_json(folder.read(file).decode(), f"{location}/{file}")
    if not folder.exists():
        raise ManifestError(
            f"no shards at {location!r}: there is no such folder. "
            f"Pack some with: python -m sharding.build --source IMAGENET --output {location} --split {split}"
        )
    manifests = find_manifests(folder)
    matching = [entry for entry in manifests.values() if entry.split == split and name in (None, entry.name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        prefixes = ", ".join(sorted(entry.name for entry in matching))
        raise ManifestError(f"{location!r} holds split {split!r} of several data sets ({prefixes}): say which by name")
    tars = [match for file in folder.names() if (match := SHARD_NAME.match(file)) and match["split"] == split]
    stems = {f"{match['name']}-{split}" for match in tars if name in (None, match["name"])}
    for stem in sorted(stems):
        if is_unfinished(folder, stem):
            raise ManifestError(
                f"{location!r} holds an unfinished build of {stem}. Give its command again (python -m sharding.build), "
                "which goes on where it was."
            )
    if stems:
        raise ManifestError(
            f"{location!r} holds shards of {split!r} but no manifest of them. If others packed them, and all are "
            f"there, run: python -m sharding.index --shards {location}"
        )
    there = ", ".join(sorted(f"{prefix}-{part}" for prefix, part in manifests)) or "none"
    wanted = f"{name or '*'}-{split}"
    raise ManifestError(f"no manifest {wanted}.json in {location!r}; manifests there: {there}")


def load_index(location: str, manifest: Manifest) -> pa.Table:
    """Read the index of a split: one row a sample, in shard order and then in tar order.

    Columns: key (string), label (int32), shard (int32, position in `manifest.shards`), offset (int64, of the image's
    bytes in the tar), size (int32, bytes), width, height (int32, pixels), xxh64 (uint64, of the image's bytes).

    Raises:
        ManifestError: the index is missing or is not the one the manifest was written with.
    """
    folder = Folder.open(location)
    file = f"{manifest.stem}.parquet"
    hint = (
        "Make it again: give the build's command once more (python -m sharding.build)."
        if "listing_sha256" in manifest.settings
        else f"Make it again: python -m sharding.index --shards {location} --split {manifest.split}"
    )
    if folder.size(file) is None:
        raise ManifestError(f"{location}/{file} is missing. {hint}")
    try:
        with folder.open_input(file) as stream:
            table = pq.read_table(pa.PythonFile(stream) if folder.is_local else stream)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{location}/{file} cannot be read: {error}. {hint}") from error
    if table.schema.remove_metadata() != INDEX_SCHEMA or index_digest(table) != manifest.index_sha256:
        raise ManifestError(f"{location}/{file} is not the index that {manifest.stem}.json was written with. {hint}")
    return table


def index_digest(table: pa.Table) -> str:
    """SHA-256 in hex of an index's content, whatever way parquet stored it."""
    digest = hashlib.sha256(str(table.num_rows).encode())
    for number, keys in enumerate(table.select(["key"]).to_batches(max_chunksize=1 << 16)):
        digest.update(("\n" * (number > 0) + "\n".join(keys[0].to_pylist())).encode())
    for column in INDEX_SCHEMA.names[1:]:
        values = np.ascontiguousarray(table[column].to_numpy())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def index_bytes(table: pa.Table) -> bytes:
    """The index as a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 17)
    return sink.getvalue().to_pybytes()


def write_manifest(folder: Folder, manifest: Manifest, index: pa.Table, *, aside: Folder | None = None) -> None:
    """Publish a split: index, then `_info.json`, and last the manifest.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder.write(f"{manifest.stem}.parquet", index_bytes(index), aside=aside)
    others = [entry for entry in find_manifests(folder).values() if entry.stem != manifest.stem]
    _write_info(folder, [*others, manifest], aside)
    folder.write(f"{manifest.stem}.json", manifest.to_json().encode(), aside=aside)
    # Another split may have been published meanwhile, and have written `_info.json` without this one.
    write_info(folder, aside=aside)


def write_info(folder: Folder, *, aside: Folder | None = None) -> None:
    """Have `_info.json` describe all splits that are published in a folder; one that does is left alone.

    Raises:
        OutputError: the folder cannot be written.
    """
    _write_info(folder, list(find_manifests(folder).values()), aside)


def _write_info(folder: Folder, manifests: Sequence[Manifest], aside: Folder | None) -> None:
    """Describe all splits as timm's reader of WebDataset expects it."""
    splits = {}
    for manifest in sorted(manifests, key=lambda entry: entry.stem):
        # Two data sets in one folder: the second one's splits get their prefix.
        label = manifest.split if manifest.split not in splits else manifest.stem
        splits[label] = {
            "name": label,
            "num_samples": manifest.num_samples,
            "filenames": [shard.name for shard in manifest.shards],
            "shard_lengths": [shard.samples for shard in manifest.shards],
        }
    content = (json.dumps({"splits": splits}, indent=1) + "\n").encode()
    if folder.size("_info.json") is None or folder.read("_info.json") != content:
        folder.write("_info.json", content, aside=aside)
