"""The configuration of a training: frozen dataclasses, their checks, their JSON; no torch.

`schema` holds the fields with their defaults, `checks` which values are possible, alone and together, `serialise` the
way to JSON and back, and `sweep` the configurations that `--sweep FIELD=A,B` stands for.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.config.checks import check
    from pipeline.config.schema import ConfigError, TrainConfig
    from pipeline.config.serialise import digest, from_dict, to_dict

__all__ = ["ConfigError", "TrainConfig", "check", "digest", "from_dict", "to_dict"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ConfigError": "schema",
        "TrainConfig": "schema",
        "check": "checks",
        "digest": "serialise",
        "from_dict": "serialise",
        "to_dict": "serialise",
    },
)
