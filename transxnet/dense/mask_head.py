"""Mask R-CNN's mask head: which pixels of a region belong to its object.

Source: He et al., "Mask R-CNN", arXiv 1703.06870, section 3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from transxnet.dense.fpn import CHANNELS
from transxnet.dense.losses import at_least_fp32

__all__ = ["REGION", "MaskHead", "mask_targets", "paste_masks"]

REGION = 14
"""Side of a region's features; its mask has twice that side."""
DEPTH = 4
"""Convolutions before the upsampling."""
PRESENT = 0.5
"""From this probability on, and from this share of a cell on, a pixel belongs to the object."""
CHUNK = 64
"""Masks that are in fp32 at a time, so that an image with a thousand objects fits the memory."""


class MaskHead(nn.Module):
    """3x3 convolutions, an upsampling by 2, and one mask for each class."""

    def __init__(self, num_classes: int, channels: int = CHANNELS, depth: int = DEPTH) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """Return logits `[K, num_classes, 28, 28]` of features `[K, channels, 14, 14]`."""
        x = regions
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(_doubled(x, self.upsample)))

    def losses(self, logits: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean cross entropy over the pixels of the positive regions' masks, 0 if there is no region.

        Args:
            logits: `[K, num_classes, 28, 28]` of the positive regions of all images.
            labels: `[K]`, their classes; only the mask of a region's own class counts.
            targets: `[K, 28, 28]`, 0 or 1.
        """
        own = at_least_fp32(logits[torch.arange(len(labels), device=labels.device), labels])
        loss = F.binary_cross_entropy_with_logits(own, targets.to(own.dtype), reduction="sum")
        return {"loss_mask": loss / max(targets.numel(), 1)}


def _doubled(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Return what a transposed convolution of kernel 2 and stride 2 computes, `[K, C, 2 H, 2 W]`, as a product.

    Each pixel becomes four, which do not overlap. PyTorch's own operator takes several times as long on a CPU.
    """
    assert layer.bias is not None
    count, _, height, width = x.shape
    weight = layer.weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]
    parts = F.conv2d(x, weight, layer.bias.repeat_interleave(4)).view(count, layer.out_channels, 2, 2, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(count, layer.out_channels, 2 * height, 2 * width)


@torch.no_grad()
def mask_targets(masks: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """Return the targets `[K, 28, 28]` fp32, 0 or 1: the objects' masks, cut to the regions and resized.

    Args:
        masks: `[G, H, W]`, bool or uint8, of an image's objects.
        boxes: `[K, 4]`, the regions, in the masks' pixels.
        truth: `[K]`, the object of each region.
    """
    side = 2 * REGION
    targets = boxes.new_zeros((len(boxes), side, side), dtype=torch.float32)
    height, width = masks.shape[-2:]
    limits = boxes.new_tensor((width, height, width, height))
    boxes = torch.minimum(boxes.clamp(min=0), limits).float()
    for start in range(0, len(masks), CHUNK):
        at = ((truth >= start) & (truth < start + CHUNK)).nonzero().flatten()
        rois = torch.cat((truth[at, None].float() - start, boxes[at]), dim=1)
        bitmaps = masks[start : start + CHUNK, None].float()
        share = ops.roi_align(bitmaps, rois, side, 1.0, sampling_ratio=0, aligned=True)
        targets[at] = (share[:, 0] >= PRESENT).float()
    return targets


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the masks `[D, H, W]` bool, in an image of `size` (height, width).

    Args:
        masks: probabilities `[D, 28, 28]`.
        boxes: `[D, 4]`, where each mask belongs, in pixels of the image.
        size: of the image.
    """
    height, width = size
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    low = (boxes[:, :2].floor() - 1).clamp(min=0).long().tolist()
    high = (boxes[:, 2:].ceil() + 1).long().tolist()
    for k, ((left, top), (right, bottom)) in enumerate(zip(low, high, strict=True)):
        right, bottom = min(right, width), min(bottom, height)
        if right <= left or bottom <= top:
            continue
        x = _cell(left, right, boxes[k, 0], boxes[k, 2])
        y = _cell(top, bottom, boxes[k, 1], boxes[k, 3])
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        part = F.grid_sample(masks[k][None, None], grid[None].to(masks.dtype), align_corners=False)
        pasted[k, top:bottom, left:right] = part[0, 0] >= PRESENT
    return pasted


def _cell(start: int, end: int, low: Tensor, high: Tensor) -> Tensor:
    """Return where the centres of the pixels `start` to `end` lie between `low` (-1) and `high` (1)."""
    centres = torch.arange(start, end, device=low.device, dtype=low.dtype) + 0.5
    return ((centres - low) / (high - low) * 2 - 1).nan_to_num(0.0, 0.0, 0.0)
