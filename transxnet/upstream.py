"""Rename state dicts between the published checkpoints' names and this package's, strictly in both directions.

Upstream keeps stages and downsampling layers in one list (`network.0` ... `network.6`, even and odd) and the position
tables at the root. Shapes and values are the same in both; only names differ.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from torch import Tensor

from transxnet.config import STAGES

__all__ = ["from_upstream", "to_upstream"]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BLOCK_KEY = re.compile(r"network\.([0246])\.(\d+)\.")


def from_upstream(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with this package's names, given one with upstream's names.

    It works for any number of classes and any image size, without a classifier, and with the norms on the stage maps of
    upstream's dense backbone (`norm0`, `norm2`, `norm4`, `norm6`, all or some). Tensors are passed on, not copied.

    Raises:
        ValueError: a key is missing, or upstream's model has no such key.
    """
    pairs = dict(_pairs(_structure(state_dict, upstream=True)))
    return _rename(state_dict, pairs, "upstream's")


def to_upstream(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with upstream's names, given one with this package's; the inverse of `from_upstream`.

    Raises:
        ValueError: a key is missing, or this package's model has no such key.
    """
    pairs = {our_key: upstream_key for upstream_key, our_key in _pairs(_structure(state_dict, upstream=False))}
    return _rename(state_dict, pairs, "this package's")


def _rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str], owner: str) -> dict[str, Tensor]:
    missing, unknown = names.keys() - state_dict.keys(), state_dict.keys() - names.keys()
    if missing or unknown:
        counts = f"{_count_keys('missing', missing)}, {_count_keys('unknown', unknown)}"
        raise ValueError(f"not a TransXNet state dict under {owner} names: {counts}")
    return {names[key]: value for key, value in state_dict.items()}


def _count_keys(word: str, keys: Iterable[str], limit: int = 3) -> str:
    keys = sorted(keys)
    shown = ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")
    return f"{len(keys)} {word}" + (f" ({shown})" if keys else "")


class _Structure(NamedTuple):
    """What the names of a state dict say about the network."""

    depths: tuple[int, ...]
    """Number of blocks of each stage."""
    reduces: tuple[bool, ...]
    """Whether the stage reduces its keys."""
    norm_stages: tuple[int, ...]
    """Stages with a norm on their map."""
    classifies: bool
    """Whether there is a classifier."""


def _structure(keys: Iterable[str], *, upstream: bool) -> _Structure:
    keys = tuple(keys)
    depths, reduces = [0] * STAGES, [False] * STAGES
    pattern = _BLOCK_KEY if upstream else re.compile(r"stages\.(\d)\.blocks\.(\d+)\.")
    reduction_mark = ".global_unit.sr." if upstream else ".attention.reduction."
    for key in keys:
        match = pattern.match(key)
        if match:
            stage = int(match[1]) // 2 if upstream else int(match[1])
            if stage < STAGES:
                depths[stage] = max(depths[stage], int(match[2]) + 1)
                reduces[stage] |= reduction_mark in key
    modules = {key.rpartition(".")[0] for key in keys}
    norm_stages = tuple(k for k in range(STAGES) if (f"norm{2 * k}" if upstream else f"out_norms.{k}") in modules)
    return _Structure(tuple(depths), tuple(reduces), norm_stages, any(key.startswith("classifier.") for key in keys))


@cache
def _pairs(structure: _Structure) -> tuple[tuple[str, str], ...]:
    """Return every pair (upstream's key, our key) of a model of this structure."""
    pairs = [*_conv_norm("patch_embed.proj", "patch_embed")]
    for stage, depth in enumerate(structure.depths):
        pairs.append((f"relative_pos_enc.{stage}", f"stages.{stage}.position_bias.table"))
        if stage > 0:
            pairs += _conv_norm(f"network.{2 * stage - 1}.proj", f"stages.{stage}.downsample")
        for index in range(depth):
            block = (f"network.{2 * stage}.{index}", f"stages.{stage}.blocks.{index}")
            pairs += [(f"{block[0]}.{a}", f"{block[1]}.{b}") for a, b in _block(structure.reduces[stage])]
    for stage in structure.norm_stages:
        pairs += _leaves(f"norm{2 * stage}", f"out_norms.{stage}", ("weight", "bias"))
    if structure.classifies:
        pairs += _leaves("classifier.0", "classifier.norm", ("weight", "bias"))
        pairs += _leaves("classifier.2", "classifier.linear", ("weight", "bias"))
    return tuple(pairs)


def _leaves(upstream_module: str, our_module: str, leaves: Iterable[str]) -> list[tuple[str, str]]:
    return [(f"{upstream_module}.{leaf}", f"{our_module}.{leaf}") for leaf in leaves]


def _conv_norm(upstream_module: str, our_module: str) -> list[tuple[str, str]]:
    return [
        (f"{upstream_module}.conv.weight", f"{our_module}.conv.weight"),
        *_leaves(f"{upstream_module}.bn", f"{our_module}.norm", _NORM),
    ]


def _block(reduces: bool) -> list[tuple[str, str]]:
    """Return the pairs (upstream's key, our key) within one block."""
    both = ("weight", "bias")
    local, attention, enhancement = "token_mixer.local", "token_mixer.attention", "token_mixer.enhancement"
    pairs = [
        *_leaves("pos_embed", "position", both),
        *_leaves("norm1", "norm1", both),
        *_leaves("norm2", "norm2", both),
        *_leaves("layer_scale_1", "residual1", both),
        *_leaves("layer_scale_2", "residual2", both),
        *_leaves("token_mixer.local_unit", local, both),
        *_conv_norm("token_mixer.local_unit.proj.0", f"{local}.squeeze"),
        *_leaves("token_mixer.local_unit.proj.1", f"{local}.expand", both),
        *_leaves("token_mixer.global_unit.q", f"{attention}.q", both),
        *_leaves("token_mixer.global_unit.kv", f"{attention}.kv", both),
        *_leaves("token_mixer.global_unit.local_conv", f"{attention}.local_conv", both),
        *_leaves("token_mixer.proj.0", f"{enhancement}.depthwise", both),
        *_leaves("token_mixer.proj.2", f"{enhancement}.norm1", _NORM),
        *_leaves("token_mixer.proj.3", f"{enhancement}.squeeze", both),
        *_leaves("token_mixer.proj.5", f"{enhancement}.norm2", _NORM),
        *_leaves("token_mixer.proj.6", f"{enhancement}.expand", both),
        *_leaves("token_mixer.proj.7", "residual1.norm", _NORM),
        ("mlp.fc1.0.weight", "mlp.expand.weight"),
        *_leaves("mlp.fc1.2", "mlp.norm1", _NORM),
        *_leaves("mlp.norm", "mlp.norm2", _NORM),
        ("mlp.fc2.0.weight", "mlp.contract.weight"),
        *_leaves("mlp.fc2.1", "residual2.norm", _NORM),
    ]
    for scale in range(4):
        pairs += _leaves(f"mlp.dwconv.proj.{scale}", f"mlp.multiscale.convs.{scale}", both)
    if reduces:
        pairs += _conv_norm("token_mixer.global_unit.sr.0", f"{attention}.reduction.reduce")
        pairs += _conv_norm("token_mixer.global_unit.sr.1", f"{attention}.reduction.scale")
    return pairs
