"""The teacher of a distillation: loaded from a run, the registry, a file or timm, and known again by a digest."""

import contextlib
import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.common.atomic import read_json, write_json
from pipeline.common.errors import one_line
from pipeline.common.secrets import mask_secrets
from pipeline.config.paths import TIMM
from pipeline.config.schema import ConfigError
from pipeline.run.files import TEACHER_NAME
from pipeline.tasks import DEFAULT
from pipeline.tracking.client import TrackingError
from pipeline.weights.card import ModelCardError
from pipeline.weights.load import load_model


@dataclass(frozen=True)
class Teacher:
    """A classifier in evaluation mode, on the CPU, whose weights do not change."""

    source: str
    """Value of `--train.distill`."""
    network: nn.Module
    """Maps images [N, 3, H, W] to logits [N, classes]."""
    name: str
    """Name of the architecture."""
    num_classes: int
    """Number of logits."""
    classes: tuple[str, ...]
    """Id of each class; empty: unknown."""
    mean: tuple[float, float, float]
    """Mean of each channel that its images are normalised by, of pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Deviation of each channel, likewise."""
    digest: str
    """SHA-256 of its weights and statistics."""


def load_teacher(source: str, classes: Sequence[str], image_size: int) -> Teacher:
    """Load a teacher and check that it can teach.

    Args:
        source: value of `--train.distill`.
        classes: id of each class of the shards.
        image_size: side of the images in pixels.

    Raises:
        ConfigError: there is no such model, its classes are others, or it takes no images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        teacher = _load_timm(source) if source.startswith(TIMM) else _load(source)
    _refuse_other_classes(teacher, classes)
    _refuse_other_size(teacher, image_size)
    return teacher


def check_recorded(run_dir: Path, source: str, digest: str) -> None:
    """Refuse a teacher whose weights are not those that a run began with.

    Raises:
        ConfigError: the message has both digests.
    """
    recorded = read_json(run_dir / TEACHER_NAME)
    if recorded is not None and recorded.get("digest") != digest:
        raise _refusal(
            source,
            f"its weights have changed since this run began (digest {digest[:12]}, then "
            f"{str(recorded.get('digest'))[:12]}): put the previous ones back, or start another run",
        )


def record_teacher(run_dir: Path, teacher: Teacher) -> None:
    """Write `RUN_DIR/teacher.json`, unless the run has one, and check that it is of the same weights.

    Raises:
        ConfigError: as `check_recorded`.
    """
    check_recorded(run_dir, teacher.source, teacher.digest)
    if not (run_dir / TEACHER_NAME).exists():
        content = {
            "source": mask_secrets(teacher.source),
            "name": teacher.name,
            "num_classes": teacher.num_classes,
            "digest": teacher.digest,
        }
        write_json(run_dir / TEACHER_NAME, content, durable=True)


def _load(source: str) -> Teacher:
    """Load a model of this project."""
    try:
        model = load_model(source)
    except (ModelCardError, TrackingError) as error:
        raise _refusal(source, str(error)) from error
    card = model.card
    if card.task != DEFAULT:
        raise _refusal(source, f"{card.name} is a {card.task}, and a teacher is a classifier")
    return _teacher(
        source,
        model.network,
        name=card.name,
        num_classes=card.num_classes,
        classes=tuple(wnid for wnid, _ in card.classes),
        mean=card.preprocessing.mean,
        std=card.preprocessing.std,
    )


def _load_timm(source: str) -> Teacher:
    """Load a model of timm with its weights, which timm fetches from their hub unless it has them already."""
    import timm
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    import transxnet.timm  # noqa: F401 (adds this project's names to timm's)

    name = source.removeprefix(TIMM)
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=3)
        raise _refusal(source, "timm has no such model" + (f"; it has {', '.join(near)}" if near else ""))
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, the hub's client and the reader of a file raise their own
        raise _refusal(source, one_line(error)) from error
    pretrained: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    num_classes = int(getattr(network, "num_classes", 0))
    names = pretrained.get("label_names") or ()
    labels = tuple(names.values() if isinstance(names, dict) else names)
    if not labels and ":" not in name and (subset := infer_imagenet_subset(pretrained)):
        labels = tuple(ImageNetInfo(subset).label_names())
    return _teacher(
        source,
        network,
        name=str(pretrained.get("architecture") or name),
        num_classes=num_classes,
        classes=labels if len(labels) == num_classes else (),
        mean=pretrained["mean"],
        std=pretrained["std"],
    )


def _teacher(
    source: str, network: nn.Module, *, classes: tuple[str, ...], mean: Any, std: Any, **known: Any
) -> Teacher:
    network.eval().requires_grad_(False)
    return Teacher(
        source=source,
        network=network,
        classes=classes if all(classes) else (),
        mean=tuple(mean),
        std=tuple(std),
        digest=_digest(network),
        **known,
    )


def _digest(network: nn.Module) -> str:
    """SHA-256 of the state dict: names, dtypes, shapes and bytes, whatever file they came from."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def _refuse_other_classes(teacher: Teacher, classes: Sequence[str]) -> None:
    if teacher.num_classes != len(classes):
        raise _refusal(
            teacher.source,
            f"{teacher.name} tells {teacher.num_classes} classes apart, and the shards have {len(classes)}: "
            "a teacher knows the same classes",
        )
    for label, (own, theirs) in enumerate(zip(classes, teacher.classes, strict=False)):
        if own != theirs:
            raise _refusal(
                teacher.source,
                f"class {label} is {theirs} to {teacher.name}, and {own} in the shards: a teacher knows the same "
                "classes in the same order",
            )


def _refuse_other_size(teacher: Teacher, image_size: int) -> None:
    """Refuse a teacher that cannot answer about images of the training's size."""
    with torch.no_grad(), _refusing(teacher.source, f"{teacher.name} takes no images of {image_size} px"):
        shape = tuple(teacher.network(torch.zeros(2, 3, image_size, image_size)).shape)
    if shape != (2, teacher.num_classes):
        raise _refusal(teacher.source, f"{teacher.name} answers {shape} for 2 images: it is no classifier")


@contextlib.contextmanager
def _refusing(source: str, reason: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the layers of the network raise
        raise _refusal(source, f"{reason}: {one_line(error)}") from error


def _refusal(source: str, reason: str) -> ConfigError:
    return ConfigError(f"--train.distill {mask_secrets(source)}: {mask_secrets(reason)}")
