"""DeepSpeed's JSON as a pure function of the config."""

from typing import Any

from pipeline.config.schema import TrainConfig

BUCKET_ELEMENTS = 16_000_000
"""Elements of one gradient or weight bucket: the whole of TransXNet-T in fp32, 64 MB."""


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON for `config` on `world_size` ranks. It is never edited by hand."""
    stage = config.zero_stage
    json: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch(world_size),
        "gradient_accumulation_steps": config.gradient_accumulation_steps(world_size),
        "gradient_clipping": config.optimizer.clip_grad_norm or 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "zero_allow_untested_optimizer": True,
        # fp32 accumulation: a tenth of the kernels of the default in a step, and no rounding between micro-batches.
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }
    if config.precision != "fp32":
        json["torch_autocast"] = {
            "enabled": True,
            "dtype": {"bf16": "bfloat16", "fp16": "float16"}[config.precision],
            # No module's gradients are rounded for the reduction.
            "lower_precision_safe_modules": [],
        }
    return json
