"""Find a network's weights in what a file holds: in which entry, below which prefix, under whose names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transxnet.upstream import from_upstream, to_upstream

__all__ = ["Weights", "choose_weights"]

OWN_STEM, UPSTREAM_STEM = "patch_embed.conv.weight", "patch_embed.proj.conv.weight"
"""The stem's kernel under this package's names and under upstream's: where it is, there is a network."""
HEAD = "classifier.linear.weight", "classifier.2.weight"
"""The classifier's matrix under this package's names and under upstream's."""
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names that `torch.compile`, FSDP and activation checkpointing add at any depth."""
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")
_DEPTH = 4


@dataclass(frozen=True)
class Weights:
    """The weights of a network, as read from a file."""

    state: dict[str, Tensor]
    """State dict under this package's names, on the CPU; perhaps without a classifier."""
    entry: str
    """Name of the entry that was taken, such as `state_dict_ema`; empty if the file holds nothing else."""
    notes: tuple[str, ...] = ()
    """A line for each part of the file that was left out."""
    outside: tuple[str, ...] = ()
    """First part of the names of what lies beside the network in its entry, such as `neck` and `decode_head`."""

    def describe(self) -> list[str]:
        """Return the lines that say what was taken and what was left out."""
        return [f"entry {self.entry}"] * bool(self.entry) + list(self.notes)


@dataclass(frozen=True)
class _Entry:
    """A state dict within a file."""

    name: str
    prefix: str
    tensors: Mapping[str, Tensor]
    """All tensors of the mapping, also those outside `prefix`."""


def choose_weights(content: Any, entry: str | None = None) -> Weights:
    """Return the weights of a TransXNet that a file's content holds.

    Any prefix of the names (`module.`, `model.`, `backbone.`, …) is left out, and so is what lies outside it, such as
    the head of a dense network. Without `entry` averaged weights are preferred, else the first entry is taken.

    Args:
        content: what the file holds: a state dict, or dicts that contain some.
        entry: name of the entry to take.

    Raises:
        ValueError: there is no such entry, or it is not a TransXNet; the message is one line.
    """
    entries = {found.name: found for found in _entries(content)}
    if not entries:
        raise ValueError(f"it holds no weights of a TransXNet ({_describe(content)})")
    if entry is None:
        entry = next((name for name in entries if _AVERAGED.search(name)), next(iter(entries)))
    elif entry not in entries:
        known = ", ".join(name or "no named entry" for name in entries)
        raise ValueError(f"it has no weights {entry!r}: it has {known}")
    chosen = entries.pop(entry)
    state = {
        _without_wrappers(key.removeprefix(chosen.prefix)): value
        for key, value in chosen.tensors.items()
        if key.startswith(chosen.prefix)
    }
    notes = [f"{', '.join(entries)} left out"] if entries else []
    outside = sorted({key.partition(".")[0] for key in chosen.tensors if not key.startswith(chosen.prefix)})
    if outside:
        notes.append(f"{', '.join(outside[:5])} left out")
    return Weights(_under_own_names(state), entry, tuple(notes), tuple(outside))


def _entries(content: Any, path: tuple[str, ...] = ()) -> Iterator[_Entry]:
    """Iterate over the state dicts in nested dicts, in their order."""
    if not isinstance(content, Mapping) or len(path) > _DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    stems = (OWN_STEM, UPSTREAM_STEM)
    prefixes = [key.removesuffix(stem) for key in tensors for stem in stems if f".{key}".endswith(f".{stem}")]
    for prefix in prefixes:
        parts = path if len(prefixes) == 1 else (*path, prefix.rstrip("."))
        yield _Entry(".".join(filter(None, parts)), prefix, tensors)
    for key, value in content.items():
        if isinstance(key, str):
            yield from _entries(value, (*path, key))


def _without_wrappers(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _under_own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of either naming under this package's names, each entry checked.

    Counters of batches, which converters drop because they are no floating-point numbers, are 0 where they are missing.
    A classifier without its matrix, as fine-tuning scripts cut it, counts as none.

    Raises:
        ValueError: a key is missing or unknown.
    """
    if not any(name in state for name in HEAD):
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    for key in [key for key in state if key.endswith(".running_mean")]:
        state.setdefault(f"{key.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    if OWN_STEM in state:
        to_upstream(state)
        return state
    return from_upstream(state)


def _describe(content: Any) -> str:
    """Say what there is instead of weights."""
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__}"
    keys = [str(key) for key in content]
    return f"its entries: {', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}" if keys else "it is empty"
