"""DeepSpeed ZeRO: one optimizer step, and access to the state of the optimizer, whatever the ZeRO stage.

Only this folder imports DeepSpeed. `deepspeed_config` is its JSON, a pure function of the training's configuration.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.engine.deepspeed_config import deepspeed_config
    from pipeline.engine.distributed import World, join_world
    from pipeline.engine.ema import Ema
    from pipeline.engine.engine import Engine

__all__ = ["Ema", "Engine", "World", "deepspeed_config", "join_world"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Ema": "ema",
        "Engine": "engine",
        "World": "distributed",
        "deepspeed_config": "deepspeed_config",
        "join_world": "distributed",
    },
)
