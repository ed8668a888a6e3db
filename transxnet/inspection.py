"""What a network looks at: Grad-CAM, effective receptive fields, the kernels of IDConv and the attention of OSRA.

All functions take a network in evaluation mode and normalised images on its device, and leave its gradients as they
are. Stages are numbered from 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backbone import Backbone
from transxnet.model import TransXNet
from transxnet.resample import resize_bicubic

__all__ = ["attention_of_position", "backbone_of", "dynamic_kernels", "effective_receptive_fields", "grad_cam"]


def backbone_of(network: nn.Module) -> Backbone:
    """Return the TransXNet within a network: a classifier is one itself, a dense network has one.

    Raises:
        ValueError: the network has none.
    """
    for module in network.modules():
        if isinstance(module, Backbone):
            return module
    raise ValueError(f"{type(network).__name__} has no TransXNet in it")


def grad_cam(network: TransXNet, images: Tensor, classes: Sequence[int], stage: int = -1) -> Tensor:
    """Return which positions of a stage's map speak for a class: float32 `[N, H_s, W_s]`, the largest 1.

    Source: Selvaraju et al. 2017, arXiv 1610.02391: the map's channels, weighted by the mean gradient of the class's
    logit, summed, and cut at zero.

    Args:
        network: a classifier.
        images: float32 `[N, 3, H, W]`.
        classes: class of each image.
        stage: the map that is weighted.
    """
    with torch.enable_grad():
        maps = network.stage_maps(images.detach().requires_grad_())
        logits = network.classifier(maps[-1])
        chosen = logits.gather(1, torch.tensor([*classes], device=logits.device).unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(chosen, maps[stage])
    weighted = (gradient.mean((2, 3), keepdim=True) * maps[stage].detach()).sum(1).clamp_min(0).float()
    return weighted / weighted.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def effective_receptive_fields(backbone: Backbone, images: Tensor) -> Tensor:
    """Return how much the centre of each stage's map depends on each pixel: float64 `[stages, H, W]`, sums over images.

    As in the figures of the paper, which follow Luo et al. 2016 (arXiv 1701.04128) and Ding et al. 2022 (arXiv
    2203.06717): the positive gradients of the sum of the central position's positive features.

    Args:
        backbone: see `backbone_of`.
        images: float32 `[N, 3, H, W]`.
    """
    with torch.enable_grad():
        pixels = images.detach().requires_grad_()
        maps = backbone.stage_maps(pixels)
        centres = [F.relu(x[:, :, x.shape[2] // 2, x.shape[3] // 2]).sum() for x in maps]
        gradients = [torch.autograd.grad(centre, pixels, retain_graph=True)[0] for centre in centres]
    return torch.stack([F.relu(gradient).double().sum((0, 1)) for gradient in gradients])


@torch.no_grad()
def dynamic_kernels(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return the kernels that IDConv makes for each image in the last block of each stage: float32 `[N, C_s, K, K]`."""
    found = []
    for (local, _, _), block in zip(_mixer_inputs(backbone, images), _last_blocks(backbone), strict=True):
        found.append(block.token_mixer.local.kernels(local)[0].float())
    return found


@torch.no_grad()
def attention_of_position(backbone: Backbone, images: Tensor, position: tuple[float, float]) -> list[Tensor]:
    """Return where OSRA attends from a position, in the last block of each stage: float32 `[N, heads, h_s, w_s]`.

    The values of a head are shares, over the coarse grid of the keys, which sum to 1.

    Args:
        backbone: see `backbone_of`.
        images: float32 `[N, 3, H, W]`.
        position: x and y as shares of the width and the height, from the top left, in [0, 1].
    """
    found = []
    for (_, attended, bias), block in zip(_mixer_inputs(backbone, images), _last_blocks(backbone), strict=True):
        q, kv = block.token_mixer.attention.project(attended)
        heads, (height, width) = bias.shape[1], q.shape[2:]
        x, y = (min(int(share * side), side - 1) for share, side in zip(position, (width, height), strict=True))
        rows = bias if bias.shape[2] == height * width else resize_bicubic(bias, 2, height * width)
        query = q[:, :, y, x].unflatten(1, (heads, -1)).float()
        keys = kv.flatten(2).unflatten(1, (2, heads, -1))[:, 0].float()
        logits = torch.einsum("nhd,nhdm->nhm", query, keys) * query.shape[-1] ** -0.5 + rows[:, :, y * width + x]
        found.append(torch.softmax(logits, dim=-1).unflatten(-1, kv.shape[2:]))
    return found


def _last_blocks(backbone: Backbone) -> list[Any]:
    """The last block of each stage."""
    return [stage.blocks[-1] for stage in backbone.stages]  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]


def _mixer_inputs(backbone: Backbone, images: Tensor) -> list[tuple[Any, ...]]:
    """The arguments of the token mixer in the last block of each stage, for images `[N, 3, H, W]`."""
    seen: list[tuple[Any, ...]] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments)

    handles = [block.token_mixer.register_forward_pre_hook(keep) for block in _last_blocks(backbone)]
    try:
        backbone.stage_maps(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen
