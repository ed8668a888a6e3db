"""How the labels of a split meet the outputs of a model: by WordNet id, or by number."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.schema import ConfigError
from pipeline.weights.card import ModelCard

if TYPE_CHECKING:
    from sharding import Manifest


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
