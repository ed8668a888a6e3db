"""One pass of a model of any task over a split."""

import time
from typing import TYPE_CHECKING

import torch

from pipeline.config.checks import check_ranges
from pipeline.config.schema import AugmentConfig, ConfigError, DataConfig, DetectionConfig, SegmentationConfig
from pipeline.config.serialise import flatten, to_dict
from pipeline.data.loader import build_evaluation_loader
from pipeline.evaluate.progress import with_progress
from sharding import load_manifest

if TYPE_CHECKING:
    from typing import Literal

    from pipeline.tasks.report import Report
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest


def evaluate(
    model: "LoadedModel",
    shards: str,
    split: str = "validation",
    *,
    data_name: str | None = None,
    subset: bool = False,
    precision: "Literal['fp32', 'bf16']" = "fp32",
    workers: int = 2,
) -> "tuple[Report, Manifest]":
    """Measure a model on every image of a split; the progress is printed to stderr.

    Args:
        model: the network and its card.
        shards: folder or URI with the split's manifest.
        split: name of the split.
        data_name: which data set, where the folder holds several; None: the only one.
        subset: let only the split's own classes compete, where the task can do so.
        precision: arithmetic of the forward.
        workers: loader processes; 0 loads in this process.

    Returns:
        The result and the split's manifest.

    Raises:
        ConfigError: the split is of another task, its classes do not fit, or a setting is out of range.
        sharding.ShardingError: the shards are missing or incomplete.
    """
    manifest, card = load_manifest(shards, split, data_name), model.card
    if manifest.task != card.task:
        raise ConfigError(f"{manifest.stem} was packed for {manifest.task}, and {card.name} has learned {card.task}")
    preprocessing = card.preprocessing
    data = DataConfig(shards=shards, validation_split=split, name=data_name, workers=workers)
    augment = AugmentConfig(
        evaluation_crop=preprocessing.evaluation_crop, mean=preprocessing.mean, std=preprocessing.std
    )
    options = SegmentationConfig()
    if preprocessing.scale is not None and preprocessing.divisor is not None:
        options = SegmentationConfig(scale=preprocessing.scale, divisor=preprocessing.divisor)
    values = {"data": to_dict(data), "augment": to_dict(augment), "segmentation": to_dict(options)}
    check_ranges(flatten({**values, "model": {"image_size": card.image_size}}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.to(device)
    measurement = card.of_task.measurement(card, manifest, augment, device, subset=subset)
    started = time.monotonic()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        build_evaluation_loader(
            data,
            augment,
            card.image_size,
            world_size=1,
            rank=0,
            device=device,
            task=card.task,
            segmentation=options,
            detection=DetectionConfig() if preprocessing.scale is None else DetectionConfig(scale=preprocessing.scale),
            model=card.name,
        ) as loader,
    ):
        for batch in with_progress(loader, manifest.num_samples):
            measurement.add(network, batch)
    return measurement.result(time.monotonic() - started), manifest
