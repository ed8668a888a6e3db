"""Errors that a user of this package can act on: each message names the value, the place and what to do."""

from __future__ import annotations


class ShardingError(ValueError):
    """Base class of every error that this package raises for wrong input."""


class SourceError(ShardingError):
    """The source is missing, empty, truncated or contradicts itself."""


class ImageError(ShardingError):
    """One image cannot be packed; the message is the reason, without the name of the file.

    Manifests hold these messages for skipped images: another wording changes the digests of such builds.
    """


class OutputError(ShardingError):
    """The output folder cannot be written, is in use by another build, or belongs to other settings."""


class ManifestError(ShardingError):
    """A manifest or an index is missing, is damaged, or does not match its shards."""


class MissingSplitError(ManifestError):
    """A folder of shards has no manifest and no shards of a split."""
