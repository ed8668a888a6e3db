"""How images without splits were divided into training and validation: by the values of `--hold-out` and `--seed`.

Parts that were divided by different values may hold the same images, so that validation scores would say too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sharding.errors import OutputError

if TYPE_CHECKING:
    from sharding.storage import Folder

PARTS = ("train", "validation")


def division_of(settings: Mapping[str, Any]) -> tuple[float, int] | None:
    """Share of the images that is held out, and seed of the choice; None if the settings divide nothing."""
    share = settings.get("hold_out")
    return None if share is None else (share, settings.get("seed", 0))


def division_flags(settings: Mapping[str, Any]) -> str:
    """The flags that divide a source as these settings do, such as `--hold-out 0.2 --seed 0`; empty if none do."""
    division = division_of(settings)
    return "" if division is None else f"--hold-out {division[0]:g} --seed {division[1]}"


def describe_contradiction(settings: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say that a train and a validation split were divided by different values.

    Args:
        settings: of the manifest of each split, by the name of the split.

    Returns:
        One clause; None if both were divided by the same values, or neither, or it is about other splits.
    """
    if set(settings) != set(PARTS) or division_of(settings["train"]) == division_of(settings["validation"]):
        return None
    first, second = (
        f"{part} was packed {'with ' + flags if (flags := division_flags(settings[part])) else 'without --hold-out'}"
        for part in PARTS
    )
    return f"{first} and {second}, so the same images may be in both"


def check_division(output: Folder, name: str, split: str, settings: Mapping[str, Any]) -> None:
    """Refuse to pack one part beside the other if that was divided by other values.

    Args:
        output: folder of the shards.
        name: prefix of all files.
        split: the split to pack.
        settings: those of its manifest.

    Raises:
        OutputError: the other part is published there, and was divided by other values.
    """
    from sharding.manifest import find_manifests

    for (prefix, other), manifest in find_manifests(output).items():
        if prefix == name and other != split:
            contradiction = describe_contradiction({other: manifest.settings, split: settings})
            if contradiction is not None:
                raise OutputError(
                    f"{output.location} holds {manifest.stem}, and this is {name}-{split}: {contradiction}. Give the "
                    "same --hold-out and --seed, or pack both into another --output"
                )
