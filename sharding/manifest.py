"""The files that describe a packed split: its manifest, its index, and the `_info.json` that timm reads.

The manifest holds classes, counts, digests and settings; the index holds the position of each image.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharding.errors import ManifestError, MissingSplitError
from sharding.index_table import FIRST_INDEX_SCHEMA, INDEX_SCHEMA, index_bytes, index_digest
from sharding.info import INFO_FILE, SplitInfo, described_stems, info_content
from sharding.storage import Folder
from sharding.work_folder import refuse_unfinished

SCHEMA_VERSION = 2
_READABLE = (1, 2)
MAX_CLASSES = 1_000_000  # ImageNet-21k has 21,841
# imagenet1k-train-0000.tar
SHARD_NAME = re.compile(r"^(?P<name>.+)-(?P<split>[A-Za-z][A-Za-z0-9_]*)-(?P<number>[0-9]+)\.tar$")
_VALIDATION_NAMES = ("val", "valid", "dev")
_MANIFEST_MARKER = b'"index_sha256"'  # every manifest contains it, and hardly any other JSON file does

IGNORED = 255
"""Class of the pixels that belong to none, in `Manifest.class_of`."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class: its WordNet id (or the name of its folder) and its human-readable name."""

    wnid: str
    name: str


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard: file name, number of samples, size in bytes, and SHA-256 of the file in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OddImage:
    """An unusual image.

    Attributes:
        key: key of the sample.
        file: name of the image in the source.
        reason: what was unusual, such as `CMYK JPEG`, `PNG` or `broken EXIF`.
        action: `converted` or `skipped`; `kept` for an image of tars that other software packed.
    """

    key: str
    file: str
    reason: str
    action: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed split.

    Attributes:
        schema_version: version of the JSON file's schema.
        name: prefix of all files, such as `imagenet1k`.
        split: name of the split, such as `train` or `validation`.
        classes: label `i` means `classes[i]`.
        shards: the shards in order; the `shard` column of the index holds positions in this tuple.
        settings: settings of the build, and the digest of the source's listing.
        odd: images that were converted or left out, or are unusual.
        index_sha256: digest of the content of the index, see `index_digest`.
        task: `classification`, where a sample has a label; `segmentation`, where it has a label map (KEY.png);
            or `detection`, where KEY.json holds its objects.
        ignore_index: value of the pixels of a label map that belong to no class; None where there are none.
        class_values: value of the pixels of each class in a label map; empty where there are none.
        ignored_values: values of further pixels that belong to no class.
    """

    name: str
    split: str
    classes: tuple[ClassInfo, ...]
    shards: tuple[ShardInfo, ...]
    index_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    odd: tuple[OddImage, ...] = ()
    schema_version: int = SCHEMA_VERSION
    task: str = "classification"
    ignore_index: int | None = None
    class_values: tuple[int, ...] = ()
    ignored_values: tuple[int, ...] = ()

    @property
    def class_of(self) -> bytes:
        """Class of each of the 256 values of a pixel in a label map, `IGNORED` for none; empty for a classification."""
        if not self.class_values:
            return b""
        table = bytearray([IGNORED]) * 256
        for label, value in enumerate(self.class_values):
            table[value] = label
        return bytes(table)

    @property
    def num_samples(self) -> int:
        """Number of images in the split."""
        return sum(shard.samples for shard in self.shards)

    @property
    def stem(self) -> str:
        """Start of the names of all files of this split: NAME-SPLIT."""
        return f"{self.name}-{self.split}"

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the whole content of the manifest."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Serialise the manifest, with its digest, as the content of a JSON file."""
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
            **({} if self.schema_version < 2 else self._content_of_task()),
        }

    def _content_of_task(self) -> dict[str, Any]:
        return {
            "schema": self.schema_version,
            "task": self.task,
            "ignore_index": self.ignore_index,
            "class_values": list(self.class_values),
            **({"ignored_values": list(self.ignored_values)} if self.ignored_values else {}),
        }

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Parse a manifest and check its digest.

        Args:
            text: content of the JSON file.
            where: path of the file, for messages; its last part must be NAME-SPLIT.json.

        Raises:
            ManifestError: the text is no manifest, has another schema version, or does not match its digest or name.
        """
        try:
            content = json.loads(text)
            version = content["schema_version"]
            if version not in _READABLE:
                readable = " and ".join(map(str, _READABLE))
                raise ManifestError(f"{where} has schema version {version}; this version reads {readable}")
            manifest = cls(
                name=content["name"],
                split=content["split"],
                classes=tuple(ClassInfo(**entry) for entry in content["classes"]),
                shards=tuple(ShardInfo(**entry) for entry in content["shards"]),
                index_sha256=content["index_sha256"],
                settings=content["settings"],
                odd=tuple(OddImage(**entry) for entry in content["odd"]),
                schema_version=version,
                task=content.get("task", "classification"),
                ignore_index=content.get("ignore_index"),
                class_values=tuple(content.get("class_values", ())),
                ignored_values=tuple(content.get("ignored_values", ())),
            )
            digest = content["digest"]
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ManifestError(f"{where} is not a manifest of shards: {error!r}") from error
        if where.rpartition("/")[2] != f"{manifest.stem}.json":
            raise ManifestError(
                f"{where} is the manifest of {manifest.stem}: its name must be {manifest.stem}.json. Move it "
                "elsewhere, or rename it and its shards to their original names."
            )
        if digest != manifest.digest:
            raise ManifestError(
                f"{where} was changed after it was written: its digest does not match. Restore the original, pack "
                "into another folder, or remove it and make a new one for the shards: python -m sharding.index"
            )
        return manifest


def shards_of(folder: Folder, stem: str) -> list[str]:
    """Names of the tars in a folder that are named like shards of the split NAME-SPLIT."""
    return [file for file in folder.names() if re.fullmatch(re.escape(stem) + r"-[0-9]+\.tar", file)]


def find_manifests(folder: Folder) -> dict[tuple[str, str], Manifest]:
    """Load all manifests directly inside a folder, by (name, split); ignores other JSON files.

    An object store may list a file only seconds after it was written, so the splits in `_info.json` are looked for too.

    Raises:
        ManifestError: a manifest is damaged.
    """
    found = {}
    names = set(folder.names())
    if not folder.is_local:
        described = {f"{stem}.json" for stem in described_stems(folder)}
        names |= {file for file in described - names if folder.size(file) is not None}
    for name in sorted(names):
        stem = name.removesuffix(".json")
        if stem == name or "-" not in stem or name.startswith((".", "_")):
            continue
        content = folder.read(name)
        if f"{stem}.parquet" not in names and _MANIFEST_MARKER not in content:
            continue
        manifest = Manifest.from_json(content.decode("utf-8", "replace"), f"{folder.location}/{name}")
        found[manifest.name, manifest.split] = manifest
    return found


def load_manifest(location: str, split: str, name: str | None = None) -> Manifest:
    """Read the manifest of a split.

    Args:
        location: folder or URI of the shards.
        split: name of the split, such as `train` or `validation`.
        name: prefix of the shards; None if the folder holds the split of one name only.

    Raises:
        ManifestError: the folder or the manifest is missing, the manifest is damaged, or several names have the split.
    """
    folder = Folder.open(location)
    if name is not None and folder.size(f"{name}-{split}.json") is not None:
        file = f"{name}-{split}.json"
        return Manifest.from_json(folder.read(file).decode(), f"{location}/{file}")
    if not folder.exists() and folder.size(INFO_FILE) is None:
        raise ManifestError(
            f"no shards at {location!r}: there is no such folder. "
            f"Pack some with: python -m sharding.build --source IMAGES --output {location} --split {split}"
        )
    manifests = find_manifests(folder)
    matching = [entry for entry in manifests.values() if entry.split == split and name in (None, entry.name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        prefixes = ", ".join(sorted(entry.name for entry in matching))
        raise ManifestError(
            f"{location!r} holds split {split!r} of several data sets ({prefixes}): name one of them "
            "(--train.data.name of a launch, --data-name of an evaluation)"
        )
    tars = [match for file in folder.names() if (match := SHARD_NAME.match(file)) and match["split"] == split]
    stems = {f"{match['name']}-{split}" for match in tars if name in (None, match["name"])}
    for stem in sorted(stems):
        refuse_unfinished(folder, stem)
    if stems:
        raise ManifestError(
            f"{location!r} holds shards of {split!r} but no manifest of them. If other software packed them, and all "
            f"of them are there, run: python -m sharding.index --shards {location}"
        )
    there = ", ".join(sorted(f"{prefix}-{part}" for prefix, part in manifests)) or "none"
    wanted = f"{name or '*'}-{split}"
    others = [part for prefix, part in manifests if part in _VALIDATION_NAMES and name in (None, prefix)]
    hint = f"; --train.data.validation-split {others[0]} reads that" if split == "validation" and others else ""
    raise MissingSplitError(f"no manifest {wanted}.json in {location!r}; manifests there: {there}{hint}")


def load_index(location: str, manifest: Manifest) -> pa.Table:
    """Read the index of a split: one row per sample, in the order of the shards and of the samples in each tar.

    Columns: key (string), label (int32), shard (int32, position in `manifest.shards`), offset (int64, position of the
    image's first byte in the tar), size (int32, bytes), width and height (int32, pixels), xxh64 (uint64, hash of the
    image's bytes), and since schema version 2 target_offset, target_size and target_xxh64 of the member with the
    target: KEY.cls, or KEY.png for a label map.

    Raises:
        ManifestError: the index is missing, damaged, or not the one that the manifest describes.
    """
    folder = Folder.open(location)
    file = f"{manifest.stem}.parquet"
    hint = (
        "To make it again, give the same build command again (python -m sharding.build)."
        if "listing_sha256" in manifest.settings
        else f"To make it again: python -m sharding.index --shards {location} --split {manifest.split}"
    )
    if folder.size(file) is None:
        raise ManifestError(f"{location}/{file} is missing. {hint}")
    try:
        with folder.open_input(file) as stream:
            table = pq.read_table(pa.PythonFile(stream) if folder.is_local else stream)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{location}/{file} cannot be read: {error}. {hint}") from error
    schema = INDEX_SCHEMA if manifest.schema_version > 1 else FIRST_INDEX_SCHEMA
    if table.schema.remove_metadata() != schema or index_digest(table) != manifest.index_sha256:
        raise ManifestError(f"{location}/{file} is not the index that {manifest.stem}.json was written with. {hint}")
    return table


def write_manifest(
    folder: Folder, manifest: Manifest, index: pa.Table, *, temporary_folder: Folder | None = None
) -> None:
    """Publish a split: first the index, then `_info.json`, and last the manifest.

    Args:
        folder: folder of the shards.
        manifest: the manifest.
        index: the index, with the columns of `INDEX_SCHEMA`.
        temporary_folder: folder for temporary files; by default `folder`.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder.write(f"{manifest.stem}.parquet", index_bytes(index), temporary_folder=temporary_folder)
    others = [entry for entry in find_manifests(folder).values() if entry.stem != manifest.stem]
    _write_info(folder, [*others, manifest], temporary_folder)
    folder.write(f"{manifest.stem}.json", manifest.to_json().encode(), temporary_folder=temporary_folder)
    # Another build may have published its split meanwhile, with an `_info.json` that lacks this split.
    others = [entry for entry in find_manifests(folder).values() if entry.stem != manifest.stem]
    _write_info(folder, [*others, manifest], temporary_folder)


def write_info(folder: Folder, *, temporary_folder: Folder | None = None) -> None:
    """Write an `_info.json` that describes all published splits of a folder, unless it does already.

    Raises:
        OutputError: the folder cannot be written.
    """
    _write_info(folder, list(find_manifests(folder).values()), temporary_folder)


def _write_info(folder: Folder, manifests: Sequence[Manifest], temporary_folder: Folder | None) -> None:
    published = [
        SplitInfo(entry.name, entry.split, {shard.name: shard.samples for shard in entry.shards}) for entry in manifests
    ]
    content = info_content(folder, published)
    if folder.size(INFO_FILE) is None or folder.read(INFO_FILE) != content:
        folder.write(INFO_FILE, content, temporary_folder=temporary_folder)
