"""ImageNet, however it is held, packed into WebDataset tars with a manifest and an index.

Packing itself is in `sharding.build`: `from sharding.build import BuildOptions, build`.
"""

from sharding.errors import ImageError, ManifestError, OutputError, ShardingError, SourceError
from sharding.manifest import ClassInfo, Manifest, OddImage, ShardInfo, load_index, load_manifest
from sharding.storage import open_filesystem

__all__ = [
    "ClassInfo",
    "ImageError",
    "Manifest",
    "ManifestError",
    "OddImage",
    "OutputError",
    "ShardInfo",
    "ShardingError",
    "SourceError",
    "load_index",
    "load_manifest",
    "open_filesystem",
]
