"""DeepSpeed's configuration follows from the training's."""

from pipeline.config.checks import check
from pipeline.config.schema import TrainConfig
from pipeline.engine.deepspeed_config import deepspeed_config


def test_the_global_batch_is_kept_by_accumulation():
    for world_size in (1, 2, 4, 8, 16):
        json = deepspeed_config(check(TrainConfig(), world_size), world_size)
        micro, steps = json["train_micro_batch_size_per_gpu"], json["gradient_accumulation_steps"]
        assert micro * steps * world_size == json["train_batch_size"] == 1024
        assert micro <= 128
