"""Matches the labels of a split with the outputs of a model, by WordNet id or by number."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pipeline.config.schema import ConfigError
from pipeline.tasks.task import Described

if TYPE_CHECKING:
    from sharding import Manifest


@dataclass(frozen=True)
class ClassMap:
    """The classes that take part in an evaluation."""

    outputs: list[int]
    """Outputs of the model that take part, in the model's order."""
    labels: list[int]
    """For each label of the split, the position of its class in `outputs`."""
    classes: list[tuple[str, str]]
    """(WordNet id, name) of each class in `outputs`."""
    num_outputs: int
    """Number of outputs of the model."""

    def short_name(self, position: int) -> str:
        """Return the first of a class's names, or its WordNet id where it has none; `position` is in `outputs`."""
        wnid, name = self.classes[position]
        return name.split(",")[0] or wnid


def match_classes(card: Described, manifest: "Manifest", *, subset: bool) -> ClassMap:
    """Match the classes of a split with those of a model.

    Classes are matched by WordNet id. Where the split's class names are numbers, as ImageNet-V2's are, they number the
    model's classes. Weights without class names are of ImageNet's classes if they have 1000 and the split has some of
    ImageNet's; else they must have as many classes as the split, in the same order.

    Args:
        card: the model.
        manifest: the split's manifest.
        subset: let only the split's classes compete, as ImageNet-A and -R are scored; otherwise all of the model's do.

    Raises:
        ConfigError: the split has classes that the model does not know.
    """
    split_ids = [entry.wnid for entry in manifest.classes]
    classes = card.classes if any(wnid for wnid, _ in card.classes) else _imagenet_names(card, split_ids)
    model_ids = [wnid for wnid, _ in classes]
    if not model_ids:
        if card.num_classes != len(split_ids):
            raise ConfigError(
                f"the weights have {card.num_classes} classes without names and {manifest.stem} has {len(split_ids)}: "
                "they cannot be matched; give a model with its model.json"
            )
        names = [(entry.wnid, entry.name) for entry in manifest.classes]
        return ClassMap(list(range(card.num_classes)), list(range(card.num_classes)), names, card.num_classes)
    are_numbers = all(name.isdecimal() and int(name) < len(model_ids) for name in split_ids)
    if are_numbers and not set(model_ids) & set(split_ids):
        split_ids = [model_ids[int(name)] for name in split_ids]
    unknown = sorted(set(split_ids) - set(model_ids))
    if unknown:
        raise ConfigError(
            f"{manifest.stem} has {len(unknown)} classes that {card.name} was not trained on: {', '.join(unknown[:3])}"
            + (", ..." if len(unknown) > 3 else "")
        )
    output_of = {wnid: output for output, wnid in enumerate(model_ids)}
    outputs = sorted(output_of[wnid] for wnid in split_ids) if subset else list(range(len(model_ids)))
    position_of = {output: position for position, output in enumerate(outputs)}
    labels = [position_of[output_of[wnid]] for wnid in split_ids]
    return ClassMap(outputs, labels, [classes[output] for output in outputs], card.num_classes)


def _imagenet_names(card: Described, split_ids: list[str]) -> tuple[tuple[str, str], ...]:
    """Return (WordNet id, name) of ImageNet's classes, if weights without class names are of them; else nothing."""
    if card.num_classes != len(imagenet_classes()):
        return ()
    are_numbers = all(name.isdecimal() for name in split_ids)
    return imagenet_classes() if are_numbers or {wnid for wnid, _ in imagenet_classes()} & set(split_ids) else ()


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Return (WordNet id, name) of ImageNet-1K's 1000 classes, in the order of the labels."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(zip(info.label_names(), info.label_descriptions(), strict=True))
