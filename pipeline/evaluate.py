"""Evaluates a model on packed images: `python -m pipeline.evaluate MODEL --shards U`."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pipeline.config import AugmentConfig, ConfigError, DataConfig, ModelConfig, ModelName, TrainConfig
from pipeline.model_card import ModelCard
from pipeline.tracking_client import TrackingError, one_line
from pipeline.tracking_secrets import mask_secrets

if TYPE_CHECKING:
    from pipeline.evaluate_measure import Report
    from pipeline.evaluate_model import LoadedModel
    from sharding import Manifest

WORST = 5


@dataclass(frozen=True)
class ClassMap:
    """How the labels of a split meet a model's outputs."""

    outputs: list[int]
    """Outputs that take part, in the model's order."""
    labels: list[int]
    """For each label of the split, its position in `outputs`."""
    classes: list[tuple[str, str]]
    """(WordNet id, name) of each taking part."""


def match_classes(card: ModelCard, manifest: "Manifest", *, subset: bool) -> ClassMap:
    """Match classes by WordNet id, or by number where the split's folders are numbered as ImageNet-V2's are.

    Weights without names must have as many classes as the split.

    Args:
        card: of the model.
        manifest: of the split.
        subset: let only the split's classes compete, as ImageNet-A and -R are scored; else all of the model's.

    Raises:
        ConfigError: the split has classes that the model does not know.
    """
    ours = [wnid for wnid, _ in card.classes]
    theirs = [entry.wnid for entry in manifest.classes]
    if not any(ours):
        if len(ours) != len(theirs):
            raise ConfigError(
                f"the weights have {len(ours)} classes without names and {manifest.stem} has {len(theirs)}: they "
                "cannot be matched; give a model with its model.json"
            )
        names = [(entry.wnid, entry.name) for entry in manifest.classes]
        return ClassMap(list(range(len(ours))), list(range(len(ours))), names)
    if not set(ours) & set(theirs) and all(name.isdecimal() and int(name) < len(ours) for name in theirs):
        theirs = [ours[int(name)] for name in theirs]
    unknown = sorted(set(theirs) - set(ours))
    if unknown:
        raise ConfigError(
            f"{manifest.stem} has {len(unknown)} classes that {card.name} was not trained on: {', '.join(unknown[:3])}"
            + (", ..." if len(unknown) > 3 else "")
        )
    position = {wnid: k for k, wnid in enumerate(ours)}
    outputs = sorted(position[wnid] for wnid in theirs) if subset else list(range(len(ours)))
    place = {output: k for k, output in enumerate(outputs)}
    return ClassMap(outputs, [place[position[wnid]] for wnid in theirs], [card.classes[k] for k in outputs])


def evaluate(
    model: "LoadedModel",
    shards: str,
    split: str = "validation",
    *,
    subset: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
) -> "tuple[Report, ClassMap, Manifest]":
    """Measure a model on every image of a split; how far it is goes to stderr.

    Raises:
        ConfigError: the classes do not fit, or there cannot be so many workers.
        sharding.ShardingError: the shards are not there or not whole.
    """
    import torch

    from pipeline.config_ranges import check_ranges
    from pipeline.data import build_evaluation_loader
    from pipeline.evaluate_measure import Measurement
    from pipeline.evaluate_progress import shown
    from pipeline.mixup import Normalise
    from sharding import load_manifest

    manifest = load_manifest(shards, split)
    matched = match_classes(model.card, manifest, subset=subset)
    settings = model.card.preprocessing
    config = TrainConfig(
        model=ModelConfig(name=cast(ModelName, model.card.name), image_size=model.card.image_size),
        data=DataConfig(shards=shards, validation_split=split, workers=workers),
        augment=AugmentConfig(evaluation_crop=settings.evaluation_crop, mean=settings.mean, std=settings.std),
    )
    check_ranges(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, normalise = model.network.to(device), Normalise(config.augment)
    outputs = torch.tensor(matched.outputs, device=device)
    labels = torch.tensor(matched.labels, device=device)
    measured = Measurement(len(matched.outputs), device)
    began = time.monotonic()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        build_evaluation_loader(config, world_size=1, rank=0, device=device) as loader,
    ):
        for batch in shown(loader, manifest.num_samples):
            logits = network(normalise(batch.images, device))
            measured.add(logits.index_select(1, outputs), labels[batch.labels.to(device)])
    report = measured.result(time.monotonic() - began)
    return report, matched, manifest


def summary(report: "Report", matched: ClassMap, model: "LoadedModel", manifest: "Manifest") -> list[str]:
    """The result in a few lines."""
    among = "" if len(matched.outputs) == model.card.num_classes else f" among {len(matched.outputs)} classes"
    lines = [
        f"{model.card.name} on {manifest.stem}, {report.samples:,} images{among}",
        f"  top-1              {100 * report.top1:.2f} %",
        f"  top-5              {100 * report.top5:.2f} %",
        f"  per class          {100 * report.mean_class_accuracy:.2f} % on average",
        f"  calibration error  {100 * report.calibration_error:.2f} %",
        f"  loss               {report.loss:.4f}",
        f"  throughput         {report.images_per_s:,.0f} images/s, loading included",
    ]
    accuracy = report.class_accuracy
    worst = sorted((k for k in range(len(accuracy)) if accuracy[k] < 1), key=lambda k: accuracy[k])[:WORST]
    if worst:
        lines.append(
            "  weakest classes    " + ", ".join(f"{_name(matched, k)} {100 * accuracy[k]:.0f} %" for k in worst)
        )
    mistakes = report.confusions(WORST)
    if mistakes:
        taken = [f"{_name(matched, label)} for {_name(matched, guess)} ({count})" for label, guess, count in mistakes]
        lines.append("  mistaken most      " + ", ".join(taken))
    return lines


def _name(matched: ClassMap, index: int) -> str:
    wnid, name = matched.classes[index]
    return name.split(",")[0] or wnid


def main(
    model: str,
    /,
    *,
    shards: str,
    split: str = "validation",
    name: str | None = None,
    subset: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
    output: Path | None = None,
    no_log: bool = False,
) -> int:
    """Measure top-1, top-5, per-class accuracy, confusion, calibration and throughput.

    Args:
        model: A run directory, a models:/ URI, a .safetensors file, or a published .pth file.
        shards: Folder or URI with the split's manifest.
        split: Split to evaluate on.
        name: What the data is called in MLflow, such as imagenet-v2; by default as its manifest says.
        subset: Let only the split's own classes compete, as ImageNet-A and -R are scored.
        precision: Arithmetic of the forward.
        workers: Loader processes.
        output: JSON file for everything that was measured.
        no_log: Do not add the result to the MLflow run that the model came from.
    """
    from sharding import ShardingError

    try:
        if output is not None and not output.absolute().parent.is_dir():
            raise ValueError(f"--output {output}: there is no such folder")
        from pipeline.evaluate_model import load_model

        loaded = load_model(model)
        report, matched, manifest = evaluate(loaded, shards, split, subset=subset, precision=precision, workers=workers)
    except (TrackingError, ShardingError, ValueError, OSError) as error:
        print(f"evaluate: {mask_secrets(str(error))}", file=sys.stderr)
        return 1
    print("\n".join(summary(report, matched, loaded, manifest)))
    if output is not None:
        output.write_text(json.dumps(report.as_json(matched.classes), indent=1, ensure_ascii=False) + "\n")
        print(f"  everything         {output}")
    if no_log or loaded.card.mlflow_run_id is None:
        return 0
    try:
        from pipeline.evaluate_log import log_report

        run = log_report(loaded, report, matched, manifest, name or manifest.stem)
    except Exception as error:
        print(
            f"evaluate: not added to MLflow at {mask_secrets(loaded.tracking_uri)}: {one_line(error)}", file=sys.stderr
        )
        return 1
    print(f"  MLflow             run {run}")
    return 0


if __name__ == "__main__":
    from pipeline.command_help import run_main

    sys.exit(run_main(main, "python -m pipeline.evaluate"))
