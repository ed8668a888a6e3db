"""Whether the samples of all splits and the lists of classes give each label the same class, and the classes by label.

A contradiction means that some of the labels are wrong, and a training would learn them without an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from sharding.errors import ManifestError
from sharding.manifest import ClassInfo
from sharding.sample_labels import ID, WNID, ClassEvidence

_ADVICE = "Correct the labels, or leave out the split that has the wrong ones."


def check_samples_agree(name: str, evidence: ClassEvidence) -> None:
    """Refuse samples that give one label two classes, or one WordNet id two labels.

    Args:
        name: prefix of the shards, for the message.
        evidence: what the samples of all splits say.

    Raises:
        ManifestError: the samples contradict each other; the message names two of them.
    """
    value_of: dict[tuple[int, str], tuple[str, str]] = {}
    label_of: dict[str, tuple[int, str]] = {}
    for label, kind, value, where in evidence:
        other, there = value_of.setdefault((label, kind), (value, where))
        if other != value:
            raise ManifestError(
                f"{name}: label {label} is {other!r} in {there}, and {value!r} in {where}: some labels are wrong. "
                f"{_ADVICE}"
            )
        if kind == ID:
            first, there = label_of.setdefault(value, (label, where))
            if first != label:
                raise ManifestError(
                    f"{name}: the class {value} has label {first} in {there}, and label {label} in {where}: some "
                    f"labels are wrong. {_ADVICE}"
                )


def disagreements(evidence: ClassEvidence, classes: Sequence[ClassInfo]) -> list[tuple[str, str]]:
    """Compare what samples say with a list of classes.

    A WordNet id must be that of the label, if the list has WordNet ids. A class name must not be that of another class:
    lists call the same class differently.

    Args:
        evidence: what the samples say.
        classes: label `i` means `classes[i]`.

    Returns:
        For each contradiction, the sample as `FILE: KEY`, and a description.
    """
    spellings = {spelling for entry in classes for spelling in _spellings(entry)}
    found = []
    for label, kind, value, where in evidence:
        if label >= len(classes):
            continue
        listed = classes[label]
        if kind == ID:
            differs = bool(WNID.match(listed.wnid)) and listed.wnid != value
        else:
            spelling = _spelling(value)
            differs = spelling in spellings and spelling not in _spellings(listed)
        if differs:
            found.append((where, f"label {label} is {value}, and {listed.wnid} ({listed.name}) in the list"))
    return found


def check_against_list(name: str, evidence: ClassEvidence, classes: Sequence[ClassInfo], origin: str) -> None:
    """Refuse samples that contradict a list of classes.

    Args:
        name: prefix of the shards, for the message.
        evidence: what the samples say.
        classes: label `i` means `classes[i]`.
        origin: where the list comes from, for the message.

    Raises:
        ManifestError: a sample contradicts the list; the message names up to two of them.
    """
    found = disagreements(evidence, classes)
    if found:
        listed = "; ".join(f"{where}: {what}" for where, what in found[:2])
        raise ManifestError(
            f"{name}: the samples contradict {origin} in {len(found)} classes: {listed}. Give the list that the labels "
            "were made with, with --classes, or correct the labels."
        )


def classes_of_samples(name: str, evidence: ClassEvidence, labels: Collection[int]) -> tuple[ClassInfo, ...]:
    """Make the list of classes from what the samples say; without ids and names a class is named by its label.

    Args:
        name: prefix of the shards, for the message.
        evidence: what the samples of all splits say, without contradictions.
        labels: all labels that samples have.

    Raises:
        ManifestError: no sample has label 0; or classes without a sample lie between classes with WordNet ids, so that
            their ids are unknown.
    """
    ids: dict[int, str] = {}
    names: dict[int, str] = {}
    for label, kind, value, _ in evidence:
        (ids if kind == ID else names).setdefault(label, value)
    count = max(labels) + 1
    without = sorted(set(range(count)) - set(labels))
    if without and (without[0] == 0 or ids):
        raise ManifestError(
            f"{name}: no sample has label {without[0]}"
            + (f" ({len(without):,} of {count:,} labels have none)" if len(without) > 1 else "")
            + ", and its class is unknown. Give the list of all classes with --classes"
            + (". If the labels count from 1, pack the samples again with labels from 0" if without == [0] else "")
            + "."
        )
    known = [ids.get(label) or names.get(label) or str(label) for label in range(count)]
    repeated = next((entry for entry, times in Counter(known).items() if times > 1), None)
    if repeated is not None:
        both = [label for label, entry in enumerate(known) if entry == repeated]
        shown = [where for label, _, value, where in evidence if label in both and value == repeated]
        raise ManifestError(
            f"{name}: the labels {both[0]} and {both[1]} are both {repeated!r} ({' and '.join(shown[:2])}). Correct "
            "the labels; or, if these are two classes, give the list of all classes with --classes."
        )
    return tuple(ClassInfo(wnid, names.get(label, wnid)) for label, wnid in enumerate(known))


def _spellings(entry: ClassInfo) -> set[str]:
    """The names under which a class may be known: `tench, Tinca tinca` is also `tench`."""
    return {_spelling(text) for text in (entry.wnid, entry.name, *entry.name.split(","))}


def _spelling(text: str) -> str:
    return text.strip().lower().replace("_", " ")
