"""The forms in which ImageNet is stored; each is read into the same `Listing`."""

from sharding.source_format import SourceFormat
from sharding.sources.detect import list_source, list_split, list_splits
from sharding.sources.hold_out import list_divided
from sharding.sources.listing import Listing

__all__ = ["Listing", "SourceFormat", "list_divided", "list_source", "list_split", "list_splits"]
