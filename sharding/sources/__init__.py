"""How ImageNet is held, and what it holds: every form ends in the same `Listing`."""

from sharding.sources.detect import SOURCE_FORMATS, SourceFormat, list_source, list_split, list_splits
from sharding.sources.listing import Listing

__all__ = ["SOURCE_FORMATS", "Listing", "SourceFormat", "list_source", "list_split", "list_splits"]
