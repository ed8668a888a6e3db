"""The state of one split's build on disk: resume it, list the shards still to write, publish.

The hidden folder `.NAME-SPLIT.parts` in the output holds the settings and one record for each finished shard. The build
removes it after it has published the manifest. Only the manifest marks a split as complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sharding.division import division_of
from sharding.errors import ManifestError, OutputError, SourceError
from sharding.imagenet import is_whole_imagenet
from sharding.images import ImagePolicy
from sharding.index_table import INDEX_SCHEMA, index_digest, repeated_keys
from sharding.labels import check_against_published
from sharding.manifest import (
    ClassInfo,
    Manifest,
    OddImage,
    find_manifests,
    load_index,
    shards_of,
    write_info,
    write_manifest,
)
from sharding.plan import Plan
from sharding.shard_record import ShardRecord
from sharding.sources.labels import class_ids
from sharding.sources.listing import Listing, select_samples
from sharding.storage import Folder
from sharding.work_folder import SETTINGS_FILE, is_unfinished, work_folder
from sharding.writer import ShardJob


class Packing:
    """The build of one split in an output folder.

    Attributes:
        manifest: manifest of the split, if an earlier build has finished it.
    """

    def __init__(self, output: Folder, name: str, listing: Listing, plan: Plan, settings: Mapping[str, Any]) -> None:
        """Inspect the output folder and claim it for these settings.

        Args:
            output: folder of the shards.
            name: prefix of all files.
            listing: the samples to pack.
            plan: the content of each shard.
            settings: settings that decide the bytes of the shards; an output with other values is refused.

        Raises:
            OutputError: the folder cannot be written, or holds a split with other settings or of unknown origin.
        """
        self.output, self.name, self.listing, self.plan = output, name, listing, plan
        self.stem = f"{name}-{listing.split}"
        self.settings = dict(settings)
        self.work_folder = work_folder(output, self.stem)
        self.byte_settings = self._byte_settings(self.settings, listing.classes)
        plan_text = json.dumps([self.stem, self.byte_settings], sort_keys=True)
        self.plan_digest = hashlib.sha256(plan_text.encode()).hexdigest()
        self.manifest = self._find_finished()
        if self.manifest is None:
            self._open_work_folder()

    def shard_name(self, number: int) -> str:
        """File name of a shard."""
        return f"{self.stem}-{number:04d}.tar"

    def _find_finished(self) -> Manifest | None:
        """Find the published manifest, if its index is sound and all its shards are there with the right size.

        Otherwise reopen the build: write the records of the shards that are there into the work folder again. Without a
        sound index there are no records, and the build writes all shards again.
        """
        manifest = self._published()
        if manifest is None:
            return None
        self._refuse_other_settings(self._byte_settings(manifest.settings, manifest.classes), f"{self.stem}.json")
        try:
            index = load_index(self.output.location, manifest)
        except ManifestError:
            index = None
        if index is not None and all(self.output.size(shard.name) == shard.bytes for shard in manifest.shards):
            write_info(self.output)
            self.remove_work_folder()
            return manifest
        self.work_folder.create()
        self.work_folder.write(SETTINGS_FILE, _to_json(self.byte_settings))
        if index is None:
            return None
        odd_by_shard: dict[int, list[OddImage]] = {}
        shard_of = {key: number for number in range(self.plan.num_shards) for key in self._keys(number)}
        for entry in manifest.odd:
            odd_by_shard.setdefault(shard_of[entry.key], []).append(entry)
        for number, shard in enumerate(manifest.shards):
            if self.output.size(shard.name) != shard.bytes:
                continue
            rows = index.filter(pc.field("shard") == number)
            odd = tuple(odd_by_shard.get(number, ()))
            record = ShardRecord(number=number, plan=self.plan_digest, shard=shard, odd=odd, rows=rows)
            self.work_folder.write(ShardRecord.file_name(number), record.to_bytes(), durable=False)
        return None

    def _keys(self, number: int) -> list[str]:
        return self.listing.keys.take(pa.array(self.plan.samples(number))).to_pylist()

    def _open_work_folder(self) -> None:
        """Create the work folder, or continue in that of an unfinished build with the same settings."""
        foreign = shards_of(self.output, self.stem)
        if foreign and not is_unfinished(self.output, self.stem):
            raise OutputError(
                f"{self.output.location} already holds {foreign[0]} and no manifest of it, so this build did not write "
                "it. Choose another --output or --name; or remove it, if it is left from an earlier build; or, if "
                "other software packed it and all of its shards are there, make a manifest: "
                f"python -m sharding.index --shards {self.output.location}"
            )
        self.work_folder.create()
        existing = self.work_folder.write_if_absent(SETTINGS_FILE, _to_json(self.byte_settings))
        self._refuse_other_settings(json.loads(existing), "an unfinished build there")

    @staticmethod
    def _byte_settings(settings: Mapping[str, Any], classes: Sequence[ClassInfo]) -> dict[str, Any]:
        """Everything that decides the bytes: the settings, and the class ids, which are in the JSON of each sample."""
        all_settings = {
            **settings,
            "classes_sha256": hashlib.sha256("\n".join(class_ids(classes)).encode()).hexdigest(),
        }
        all_settings.pop("whole_imagenet", None)  # follows from the other settings and from the images left out
        return all_settings

    def _refuse_other_settings(self, existing: dict[str, Any], where: str) -> None:
        """Refuse to continue in an output folder that belongs to other settings.

        Args:
            existing: the settings found in the output folder.
            where: what they were found in, for the message.

        Raises:
            OutputError: the settings differ; the message lists the differences.
        """
        differences = [
            f"{key}: {existing.get(key)!r} there, {self.byte_settings.get(key)!r} here"
            for key in sorted({*existing, *self.byte_settings})
            if existing.get(key) != self.byte_settings.get(key)
        ]
        if differences:
            # Another division of the same source lists other images too.
            source_changed = (
                division_of(existing) == division_of(self.byte_settings)
                and existing.get("listing_sha256") != self.byte_settings["listing_sha256"]
            )
            advice = (
                "The source has changed, or is another one: give another --output or --name, or remove "
                f"{self.stem}-*.tar, {self.stem}.json and {self.work_folder_name} there to pack it again."
                if source_changed
                else "Give the same settings, or another --output or --name."
            )
            raise OutputError(
                f"{self.output.location} belongs to other settings ({where}): {'; '.join(differences)}. {advice}"
            )

    def remove_work_folder(self) -> None:
        """Remove the work folder: after the manifest is published and the lock is released.

        The settings go first, since they mark the build as unfinished.
        """
        with contextlib.suppress(OSError):
            self.work_folder.remove(SETTINGS_FILE)
            if not self.output.is_local:  # an object store removes what it lists, and may list a file late
                for name in set(self._record_names()) - set(self.work_folder.names()):
                    self.work_folder.remove(name)
        self.output.remove_folder(self.work_folder_name)

    def _record_names(self) -> list[str]:
        """File names of the records of all shards, in the work folder."""
        return [ShardRecord.file_name(number) for number in range(self.plan.num_shards)]

    @property
    def work_folder_name(self) -> str:
        """Name of the work folder inside the output folder."""
        return self.work_folder.path.rpartition("/")[2]

    def add_class_names(self) -> Manifest | None:
        """Rewrite the manifest of a finished split with the class names of the listing, if it has only class ids.

        Returns:
            The new manifest, with another digest; None if the names are there already.
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
        """The shards of one task, as jobs for `pack_shard`."""
        for number in range(task_index, self.plan.num_shards, task_count):
            samples = select_samples(self.listing, self.plan.samples(number))
            yield ShardJob(
                number=number,
                file_name=self.shard_name(number),
                plan=self.plan_digest,
                source=source,
                output=self.output,
                work_folder=self.work_folder,
                manifest=f"{self.stem}.json",
                samples=samples,
                wnids=[self.listing.classes[label].wnid for label in samples.labels],
                policy=policy,
                skip_bad=skip_bad,
                label_maps=self.listing.label_maps,
            )

    def finish(self) -> Manifest | None:
        """Publish if every shard is finished; return None while shards of other tasks are missing.

        Raises:
            OutputError: see `publish`.
        """
        listed = set(self.work_folder.names())
        try:
            # An object store may list a file only seconds after it was written.
            if all(name in listed or self.work_folder.size(name) is not None for name in self._record_names()):
                return self.publish()
        except (FileNotFoundError, OutputError):
            # Another task may have published and removed the work folder at the same time.
            published = self._published_if_finished()
            if published is None:
                raise
            return published
        return self._published_if_finished()

    def _published_if_finished(self) -> Manifest | None:
        """The published manifest; None while there is none or lost shards are being written again."""
        return None if is_unfinished(self.output, self.stem) else self._published()

    def _published(self) -> Manifest | None:
        return find_manifests(self.output).get((self.name, self.listing.split))

    def publish(self) -> Manifest:
        """Write index, `_info.json` and manifest from the records of all shards.

        Raises:
            OutputError: the folder cannot be written, or a record is damaged.
        """
        sizes = {info.base_name: info.size for info in self.output.list()}
        records = []
        for number in range(self.plan.num_shards):
            record = ShardRecord.from_bytes(number, self.work_folder.read(ShardRecord.file_name(number)))
            if record is None or record.plan != self.plan_digest:
                raise OutputError(f"the record of {self.shard_name(number)} is damaged. Give the same command again.")
            name = record.shard.name
            # An object store may list a file, or its new size, late: it is asked for this file before it is missed.
            if sizes.get(name) != record.shard.bytes and self.output.size(name) != record.shard.bytes:
                raise OutputError(f"{name} is missing or has changed since it was packed. Give the same command again.")
            records.append(record)
        index = (
            pa.concat_tables([record.rows for record in records]).combine_chunks()
            if records
            else INDEX_SCHEMA.empty_table()
        )
        if not index.num_rows:
            raise SourceError(f"no readable image in split {self.listing.split!r}")
        odd = tuple(entry for record in records for entry in record.odd)
        self._check_counts(index, skipped=sum(entry.action == "skipped" for entry in odd))
        whole = bool(self.settings.get("whole_imagenet")) and is_whole_imagenet(
            self.listing.split, index["label"].to_numpy(), self.listing.classes
        )
        manifest = Manifest(
            name=self.name,
            split=self.listing.split,
            classes=self.listing.classes,
            shards=tuple(record.shard for record in records),
            index_sha256=index_digest(index),
            settings={**self.settings, "whole_imagenet": whole},
            odd=odd,
            **self._task(),
        )
        check_against_published(self.output, self.name, self.listing, self.work_folder.location)
        write_manifest(self.output, manifest, index, temporary_folder=self.work_folder)
        try:
            check_against_published(self.output, self.name, self.listing, self.work_folder.location)
        except OutputError:  # another build has published between the first check and the write
            self.output.remove(f"{self.stem}.json")
            raise
        return manifest

    def _task(self) -> dict[str, Any]:
        """The fields of the manifest that say what the targets are."""
        if self.listing.documents is not None:
            return {"task": "detection"}
        maps = self.listing.label_maps
        if maps is None:
            return {}
        return {
            "task": "segmentation",
            "ignore_index": maps.ignore_index,
            "class_values": maps.class_values,
            "ignored_values": maps.ignored_values,
        }

    def _check_counts(self, index: pa.Table, skipped: int) -> None:
        """Check before publishing that the shards hold each listed sample exactly once.

        Raises:
            OutputError: samples are missing or repeated, because the source changed unnoticed during the build.
        """
        wrong = []
        if repeated := repeated_keys(index):
            wrong.append(f"{repeated[0]!r} comes more than once")
        if len(index) + skipped != len(self.listing):
            wrong.append(f"{len(index):,} samples and {skipped:,} left out of {len(self.listing):,} listed")
        if wrong:
            raise OutputError(
                f"the shards of {self.stem} do not hold what was listed: {'; '.join(wrong)}. Nothing was published. "
                f"Remove {self.work_folder.location} and the shards, and pack again."
            )


def _to_json(settings: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(settings), indent=1, sort_keys=True) + "\n").encode()
