"""Pack ImageNet, in whichever form it is stored, into WebDataset tars with a manifest and an index.

The packing itself is in `sharding.build`: `from sharding.build import BuildOptions, build`. Importing this package
imports no other: pyarrow is imported when a manifest is first used, so that `--help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharding.errors import ImageError, ManifestError, MissingSplitError, OutputError, ShardingError, SourceError

if TYPE_CHECKING:
    from sharding.division import describe_contradiction, division_flags
    from sharding.manifest import ClassInfo, Manifest, OddImage, ShardInfo, load_index, load_manifest
    from sharding.storage import open_filesystem

__all__ = [
    "ClassInfo",
    "ImageError",
    "Manifest",
    "ManifestError",
    "MissingSplitError",
    "OddImage",
    "OutputError",
    "ShardInfo",
    "ShardingError",
    "SourceError",
    "describe_contradiction",
    "division_flags",
    "load_index",
    "load_manifest",
    "open_filesystem",
]

_MODULE_OF = {
    "describe_contradiction": "sharding.division",
    "division_flags": "sharding.division",
    "open_filesystem": "sharding.storage",
}
_DEFAULT_MODULE = "sharding.manifest"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sharding' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF.get(name, _DEFAULT_MODULE)), name)
    globals()[name] = value
    return value
