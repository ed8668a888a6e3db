"""Packs one split: plan, write the shards that are not there yet, publish when all are.

Everything between is found again on disk: the folder `.NAME-SPLIT.parts` in the output holds the settings and one
record for each finished shard, and disappears when the manifest is published. The manifest alone says that a split is
complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from sharding.errors import ManifestError, OutputError, SourceError
from sharding.imagenet import audit
from sharding.images import ImagePolicy
from sharding.labels import check_published, class_ids
from sharding.manifest import (
    INDEX_SCHEMA,
    ClassInfo,
    Manifest,
    OddImage,
    find_manifests,
    index_digest,
    load_index,
    shards_of,
    write_info,
    write_manifest,
)
from sharding.parts import Part
from sharding.plan import Plan
from sharding.sources.listing import Listing
from sharding.storage import Folder
from sharding.unfinished import SETTINGS, is_unfinished, parts_folder
from sharding.writer import ShardJob, cut


class Packing:
    """One split on its way into an output folder.

    Attributes:
        manifest: of the finished split, if it was found finished.
    """

    def __init__(self, output: Folder, name: str, listing: Listing, plan: Plan, settings: Mapping[str, Any]) -> None:
        """Look at the output folder, refuse what does not fit.

        Args:
            output: folder of the shards; created if need be.
            name: prefix of all files.
            listing: what is packed.
            plan: how.
            settings: that decide the bytes of the shards; another value in the same output is refused.

        Raises:
            OutputError: the folder cannot be written, or holds a split of other settings or of unknown origin.
        """
        self.output, self.name, self.listing, self.plan = output, name, listing, plan
        self.stem = f"{name}-{listing.split}"
        self.settings = dict(settings)
        self.parts = parts_folder(output, self.stem)
        self.claim = self._claim(self.settings, listing.classes)
        self.plan_digest = hashlib.sha256(json.dumps([self.stem, self.claim], sort_keys=True).encode()).hexdigest()
        self.manifest = self._find_finished()
        if self.manifest is None:
            self._open_parts()

    def shard_name(self, number: int) -> str:
        """File name of a shard."""
        return f"{self.stem}-{number:04d}.tar"

    def _find_finished(self) -> Manifest | None:
        """The published manifest, if all its shards are there by size; else its records become parts again.

        Where the index is lost or damaged there are no records, and all shards are written once more.
        """
        manifest = self._published()
        if manifest is None:
            return None
        self._refuse_other(self._claim(manifest.settings, manifest.classes), f"{self.stem}.json")
        try:
            index = load_index(self.output.location, manifest)
        except ManifestError:
            index = None
        if index is not None and all(self.output.size(shard.name) == shard.bytes for shard in manifest.shards):
            write_info(self.output)
            self.tidy()
            return manifest
        self.parts.create()
        self.parts.write(SETTINGS, _to_json(self.claim))
        if index is None:
            return None
        odd_of: dict[int, list[OddImage]] = {}
        owner = {key: number for number in range(self.plan.num_shards) for key in self._keys(number)}
        for entry in manifest.odd:
            odd_of.setdefault(owner[entry.key], []).append(entry)
        for number, shard in enumerate(manifest.shards):
            if self.output.size(shard.name) != shard.bytes:
                continue
            rows = index.filter(pc.field("shard") == number)
            part = Part(number=number, plan=self.plan_digest, shard=shard, odd=tuple(odd_of.get(number, ())), rows=rows)
            self.parts.write(Part.file_name(number), part.to_bytes(), durable=False)
        return None

    def _keys(self, number: int) -> list[str]:
        return self.listing.keys.take(pa.array(self.plan.samples(number))).to_pylist()

    def _open_parts(self) -> None:
        """Claim the output for these settings."""
        foreign = shards_of(self.output, self.stem)
        if foreign and not is_unfinished(self.output, self.stem):
            raise OutputError(
                f"{self.output.location} already holds {foreign[0]} and no manifest of it, so it is not this build's. "
                "Choose another --output or --name; or remove it, if it is left from a build; or describe it, if "
                f"others packed it and all are there: python -m sharding.index --shards {self.output.location}"
            )
        self.parts.create()
        there = self.parts.write_once(SETTINGS, _to_json(self.claim))
        self._refuse_other(json.loads(there), "an unfinished build there")

    @staticmethod
    def _claim(settings: Mapping[str, Any], classes: Sequence[ClassInfo]) -> dict[str, Any]:
        """All that decides the bytes: the settings, and the ids of the classes, which each sample's JSON names."""
        claim = {**settings, "classes_sha256": hashlib.sha256("\n".join(class_ids(classes)).encode()).hexdigest()}
        claim.pop("whole_imagenet", None)  # follows from the rest, and from what was left out
        return claim

    def _refuse_other(self, there: dict[str, Any], where: str) -> None:
        differences = [
            f"{key}: {there.get(key)!r} there, {self.claim.get(key)!r} here"
            for key in sorted({*there, *self.claim})
            if there.get(key) != self.claim.get(key)
        ]
        if differences:
            changed = there.get("listing_sha256") != self.claim["listing_sha256"]
            advice = (
                "The source has changed, or is another one: give another --output or --name, or remove "
                f"{self.stem}-*.tar, {self.stem}.json and {self.parts.path.rpartition('/')[2]} there to pack it anew."
                if changed
                else "Give the same settings, or another --output or --name."
            )
            raise OutputError(
                f"{self.output.location} belongs to other settings ({where}): {'; '.join(differences)}. {advice}"
            )

    @contextlib.contextmanager
    def lock(self, task_index: int, task_count: int) -> Iterator[None]:
        """Keep a second build of the same task out, where the file system can; the bytes would be the same anyway.

        Raises:
            OutputError: another process is at work.
        """
        if not self.output.is_local or self.manifest is not None:
            yield
            return
        self.parts.create()  # another build may have published and tidied up just now
        task = self.parts.join(f"task-{task_index}-of-{task_count}.lock")
        with open(task, "w") as own, open(self.parts.join("build.lock"), "w") as shared:
            if _flock(own, fcntl.LOCK_EX) is False:
                raise OutputError(
                    f"another build is writing {self.stem} to {self.output.location}. Wait for it, or end it; "
                    "then the same command goes on where it was."
                )
            # Every task holds the shared lock while it writes: who gets it alone finds only what killed builds left.
            if _flock(shared, fcntl.LOCK_EX):
                self._remove_leftovers()
            with contextlib.suppress(OSError):
                fcntl.flock(shared, fcntl.LOCK_SH)
            yield

    def _remove_leftovers(self) -> None:
        """Remove the shards that killed builds were writing."""
        for file in self.parts.names():
            if re.fullmatch(rf"\.{re.escape(self.stem)}-[0-9]+\.tar\.[0-9a-f]+\.tmp", file):
                self.parts.remove(file)

    def tidy(self) -> None:
        """Remove the records, once the manifest is published and the lock is released; first what says they count."""
        with contextlib.suppress(OSError):
            self.parts.remove(SETTINGS)
        self.output.remove_folder(self.parts.path.rpartition("/")[2])

    def name_classes(self) -> Manifest | None:
        """Give the classes of a finished split the names of the listing, where they have only their ids.

        Returns:
            The manifest anew, with another digest; None if there was nothing to do.
        """
        old, new = self.manifest, self.listing.classes
        if old is None or old.classes == new or any(entry.name != entry.wnid for entry in old.classes):
            return None
        manifest = dataclasses.replace(old, classes=new)
        self.output.write(f"{self.stem}.json", manifest.to_json().encode())
        return manifest

    def jobs(
        self, source: Folder, policy: ImagePolicy, *, skip_bad: bool, task_index: int, task_count: int
    ) -> Iterator[ShardJob]:
        """The shards of one task, to be given to `pack_shard`."""
        for number in range(task_index, self.plan.num_shards, task_count):
            samples = cut(self.listing, self.plan.samples(number))
            yield ShardJob(
                number=number,
                file_name=self.shard_name(number),
                plan=self.plan_digest,
                source=source,
                output=self.output,
                parts=self.parts,
                manifest=f"{self.stem}.json",
                samples=samples,
                wnids=[self.listing.classes[label].wnid for label in samples.labels],
                policy=policy,
                skip_bad=skip_bad,
            )

    def finish(self) -> Manifest | None:
        """Publish if every shard is there; None while other tasks have some left.

        Raises:
            OutputError: see `publish`.
        """
        there = set(self.parts.names())
        try:
            if all(Part.file_name(number) in there for number in range(self.plan.num_shards)):
                return self.publish()
        except (FileNotFoundError, OutputError):
            # Another task may have finished at the same time, and have published and tidied up.
            published = self._ended()
            if published is None:
                raise
            return published
        return self._ended()

    def _ended(self) -> Manifest | None:
        """The manifest, if it is published and nothing is being written again."""
        return None if is_unfinished(self.output, self.stem) else self._published()

    def _published(self) -> Manifest | None:
        return find_manifests(self.output).get((self.name, self.listing.split))

    def publish(self) -> Manifest:
        """Write index, `_info.json` and manifest from the records of all shards.

        Raises:
            OutputError: the folder cannot be written, or a record is damaged.
        """
        sizes = {info.base_name: info.size for info in self.output.list()}
        parts = []
        for number in range(self.plan.num_shards):
            part = Part.from_bytes(number, self.parts.read(Part.file_name(number)))
            if part is None or part.plan != self.plan_digest:
                raise OutputError(f"the record of {self.shard_name(number)} is damaged. Give the same command again.")
            if sizes.get(part.shard.name) != part.shard.bytes:
                raise OutputError(f"{part.shard.name} is not what was packed any more. Give the same command again.")
            parts.append(part)
        index = (
            pa.concat_tables([part.rows for part in parts]).combine_chunks() if parts else INDEX_SCHEMA.empty_table()
        )
        if not index.num_rows:
            raise SourceError(f"no readable image in split {self.listing.split!r}")
        self._check_counts(index, sum(entry.action == "skipped" for part in parts for entry in part.odd))
        whole = bool(self.settings.get("whole_imagenet")) and not audit(
            self.listing.split, index["label"].to_numpy(), self.listing.classes
        )
        manifest = Manifest(
            name=self.name,
            split=self.listing.split,
            classes=self.listing.classes,
            shards=tuple(part.shard for part in parts),
            index_sha256=index_digest(index),
            settings={**self.settings, "whole_imagenet": whole},
            odd=tuple(entry for part in parts for entry in part.odd),
        )
        check_published(self.output, self.name, self.listing, self.parts.location)
        write_manifest(self.output, manifest, index, aside=self.parts)
        try:
            check_published(self.output, self.name, self.listing, self.parts.location)
        except OutputError:  # the other came between the check and the writing, and sees this one too
            self.output.remove(f"{self.stem}.json")
            raise
        return manifest

    def _check_counts(self, index: pa.Table, skipped: int) -> None:
        """Refuse to publish anything but each listed sample once.

        Raises:
            OutputError: samples are missing or come twice: the source changed under the build in a way nothing told.
        """
        wrong = []
        keys = index["key"].to_pylist()
        if len(set(keys)) != len(keys):
            wrong.append(f"{Counter(keys).most_common(1)[0][0]!r} comes more than once")
        if len(index) + skipped != len(self.listing):
            wrong.append(f"{len(index):,} samples and {skipped:,} left out of {len(self.listing):,} listed")
        if wrong:
            raise OutputError(
                f"the shards of {self.stem} do not hold what was listed: {'; '.join(wrong)}. Nothing was published. "
                f"Remove {self.parts.location} and the shards, and pack anew."
            )


def _flock(stream: IO[str], kind: int) -> bool | None:
    """Try to lock a file: whether that went, None where the file system has no locks."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _to_json(settings: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(settings), indent=1, sort_keys=True) + "\n").encode()
