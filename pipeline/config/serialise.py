"""A configuration to JSON and back, its digest, and which fields may change when a run is resumed."""

import dataclasses
import hashlib
import json
from typing import Any

from pipeline.config.schema import (
    AugmentConfig,
    ConfigError,
    DataConfig,
    DetectionConfig,
    DistillationConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SegmentationConfig,
    TrainConfig,
)

MAY_CHANGE = frozenset(
    {
        "micro_batch_size",
        "zero_stage",
        "save_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "collective_timeout_s",
        "slow_factor",
        "preflight",
        "preflight_slow",
        "exclude_share",
        "audit_samples",
        "profile",
        "memory_snapshot",
        "compile",
        "cuda_graphs",
        "gradient_checkpointing",
        "model.backend",
        "data.shards",
        "data.validation_shards",
        "data.name",
        "data.workers",
        "data.prefetch_batches",
        "data.on_damage",
        "data.max_replacements",
        "data.cache_dir",
        "data.cache_gb",
        "data.stage",
        "on_non_finite",
        "max_skipped_batches",
    }
)
"""Fields that may change when a run is resumed: they decide where, how fast and how safely it runs, not the result."""


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as the nested dict that `config.json` holds."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict with dotted names: `{"data": {"workers": 4}}` becomes `{"data.workers": 4}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def from_dict(tree: dict[str, Any]) -> TrainConfig:
    """Return the `TrainConfig` that `to_dict` gave.

    Raises:
        ConfigError: this version does not know a field.
    """
    parts = {
        "model": ModelConfig,
        "data": DataConfig,
        "augment": AugmentConfig,
        "mix": MixConfig,
        "distillation": DistillationConfig,
        "segmentation": SegmentationConfig,
        "detection": DetectionConfig,
        "optimizer": OptimizerConfig,
        "schedule": ScheduleConfig,
    }

    def build(cls: type, values: dict[str, Any]) -> Any:
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"config.json has fields this version does not know: {', '.join(unknown)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    return build(TrainConfig, {k: build(parts[k], v) if k in parts else v for k, v in tree.items()})


def digest(config: TrainConfig) -> str:
    """Return the sha256 of the fields that the result depends on: all but `MAY_CHANGE`."""
    fixed = {k: v for k, v in flatten(to_dict(config)).items() if k not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def difference(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return `name: old -> new` for every field that differs and may not change within a run."""
    a, b = flatten(to_dict(old)), flatten(to_dict(new))
    return [f"{name}: {a[name]} -> {b[name]}" for name in a if a[name] != b[name] and name not in MAY_CHANGE]
