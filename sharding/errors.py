"""Errors that a user of this package can act on: each names the value, the place and what to do."""

from __future__ import annotations


class ShardingError(ValueError):
    """Base of everything this package raises for wrong input."""


class SourceError(ShardingError):
    """The source is missing, empty, truncated, or says something contradictory."""


class ImageError(ShardingError):
    """One image cannot be packed; the message is the reason, without the file's name."""


class OutputError(ShardingError):
    """The output folder cannot be written, is in use, or belongs to other settings."""


class ManifestError(ShardingError):
    """A manifest or index is missing, damaged, or does not fit its shards."""
