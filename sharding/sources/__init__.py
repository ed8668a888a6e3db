"""The forms in which ImageNet is stored; each is read into the same `Listing`."""

from sharding.sources.detect import SOURCE_FORMATS, SourceFormat, list_source, list_split, list_splits
from sharding.sources.listing import Listing

__all__ = ["SOURCE_FORMATS", "Listing", "SourceFormat", "list_source", "list_split", "list_splits"]
