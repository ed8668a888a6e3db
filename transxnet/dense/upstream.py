"""Rename state dicts of dense networks between the published files' names and this package's, in both directions.

Upstream's files have the backbone under `backbone.` and wrap each convolution and norm once more. Shapes and values are
the same in both. `load_state_dict` is strict, so a key that is missing or not known is an error there.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from transxnet.upstream import from_upstream as backbone_from_upstream
from transxnet.upstream import to_upstream as backbone_to_upstream

__all__ = ["from_upstream", "to_upstream"]

BACKBONE = "backbone."
# Upstream's module, ours; {} stands for a number.
_MODULES = (
    ("neck.lateral_convs.{}.conv", "neck.laterals.{}"),
    ("neck.fpn_convs.{}.conv", "neck.outputs.{}"),
    ("decode_head.conv_seg", "head.classifier"),
    ("bbox_head.cls_convs.{}.conv", "head.class_convs.{}"),
    ("bbox_head.reg_convs.{}.conv", "head.box_convs.{}"),
    ("bbox_head.retina_cls", "head.class_logits"),
    ("bbox_head.retina_reg", "head.box_deltas"),
    ("rpn_head.rpn_conv", "rpn.conv"),
    ("rpn_head.rpn_cls", "rpn.objectness"),
    ("rpn_head.rpn_reg", "rpn.box_deltas"),
    ("roi_head.bbox_head.shared_fcs.{}", "box_head.shared.{}"),
    ("roi_head.bbox_head.fc_cls", "box_head.class_logits"),
    ("roi_head.bbox_head.fc_reg", "box_head.box_deltas"),
    ("roi_head.mask_head.convs.{}.conv", "mask_head.convs.{}"),
    ("roi_head.mask_head.upsample", "mask_head.upsample"),
    ("roi_head.mask_head.conv_logits", "mask_head.logits"),
    # Upsampling layers lie between the convolutions of a scale, so these have even numbers upstream.
    *(
        (f"decode_head.scale_heads.{{}}.{2 * k}.{theirs}", f"head.scales.{{}}.{k}.{ours}")
        for k in range(3)
        for theirs, ours in (("conv", "conv"), ("bn", "norm"))
    ),
)


def from_upstream(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a dense network's state dict with this package's names, given one with upstream's names.

    Tensors are passed on, not copied. The names fit `semantic_fpn`, `retinanet` or `mask_rcnn`, whichever the file is.

    Raises:
        ValueError: the backbone lacks a key, or upstream's dense networks have no such key.
    """
    return _rename(state_dict, _MODULES, backbone_from_upstream)


def to_upstream(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a dense network's state dict with upstream's names; the inverse of `from_upstream`.

    Raises:
        ValueError: the backbone lacks a key, or this package's dense networks have no such key.
    """
    return _rename(state_dict, tuple((ours, theirs) for theirs, ours in _MODULES), backbone_to_upstream)


def _rename(
    state_dict: Mapping[str, Tensor],
    modules: tuple[tuple[str, str], ...],
    backbone: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    backbone_part = {key.removeprefix(BACKBONE): v for key, v in state_dict.items() if key.startswith(BACKBONE)}
    renamed = {f"{BACKBONE}{key}": value for key, value in backbone(backbone_part).items()}
    patterns = [
        (re.compile(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(\.\w+)"), new.replace("{}", r"\1"), new.count("{}"))
        for old, new in modules
    ]
    unknown = []
    for key, value in state_dict.items():
        if key.startswith(BACKBONE):
            continue
        found = [m.expand(rf"{new}\{n + 1}") for pattern, new, n in patterns if (m := pattern.fullmatch(key))]
        if found:
            renamed[found[0]] = value
        else:
            unknown.append(key)
    if unknown:
        more = ", ..." if len(unknown) > 3 else ""
        raise ValueError(f"not a dense network's state dict: {len(unknown)} unknown ({', '.join(unknown[:3])}{more})")
    return renamed
