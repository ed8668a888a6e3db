"""ImageNet, however it is held, packed into WebDataset tars with a manifest and an index.

Packing itself is in `sharding.build`: `from sharding.build import BuildOptions, build`. Importing the package costs
nothing: pyarrow is imported when a manifest is first asked for, so that `--help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharding.errors import ImageError, ManifestError, OutputError, ShardingError, SourceError

if TYPE_CHECKING:
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

_HOMES = {"open_filesystem": "sharding.storage"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sharding' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "sharding.manifest")), name)
    globals()[name] = value
    return value
