"""Features of regions: each region is pooled to one size from the level that fits its area.

Source: He et al., "Mask R-CNN", arXiv 1703.06870, section 3 (RoIAlign), and Lin et al., arXiv 1612.03144, section 4.2
(the level), as upstream's recipe has them: coordinates aligned to pixel centres, as many samples as a bin has pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import ops

__all__ = ["pool_regions", "region_levels", "roi_align", "roi_align_separable"]

FINEST = 56
"""Side in pixels up to twice which a region belongs to the finest level."""
CHUNK = 32


def region_levels(boxes: Tensor, count: int) -> Tensor:
    """Return the level of each box `[K, 4]`, int64 from 0 to `count` - 1: one more for each doubling of its side."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (side / FINEST + 1e-6).log2().floor().clamp(0, count - 1).long()


def pool_regions(levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int) -> Tensor:
    """Return the features `[K, C, size, size]` of the boxes of all images, image by image.

    Args:
        levels: `[N, C, H_l, W_l]`, finest first.
        strides: of the levels in pixels.
        boxes: of each of the N images, `[K_i, 4]` in pixels; K is their number over all images.
        size: side of the result.
    """
    dtype = levels[0].dtype
    rois = torch.cat([torch.cat((b.new_full((len(b), 1), image), b), dim=1) for image, b in enumerate(boxes)])
    level_of = region_levels(rois[:, 1:], len(levels))
    parts, order = [], []
    for level, (features, stride) in enumerate(zip(levels, strides, strict=True)):
        at = (level_of == level).nonzero().flatten()
        parts.append(roi_align(features, rois[at].to(dtype), size, 1 / stride))
        order.append(at)
    return torch.cat(parts)[torch.cat(order).argsort()]


def roi_align(x: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Return the features `[K, C, size, size]` of the regions `[K, 5]` (image, x1, y1, x2, y2) of maps `[N, C, H, W]`.

    On a CUDA device the separable form computes them where a gradient is needed, because that of torchvision's operator
    is summed there by atomics, in an order that changes: a training would not repeat itself.

    Args:
        x: the maps.
        rois: the regions, in pixels of the image.
        size: side of the result.
        scale: the map's side divided by the image's.
    """
    if x.is_cuda and x.requires_grad and torch.is_grad_enabled():
        return roi_align_separable(x, rois, size, scale)
    return ops.roi_align(x, rois, size, scale, sampling_ratio=0, aligned=True)


def roi_align_separable(x: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Return what `roi_align` does, as two matrix products, whose gradients have a fixed order of summation.

    The samples of a region are a grid, and bilinear interpolation is a product of the two axes, so a bin is a weighted
    sum over rows of a weighted sum over columns. Memory is bounded by taking a few regions at a time.
    """
    parts, order = [], []
    with torch.autocast(x.device.type, enabled=False):
        maps = x.to(torch.promote_types(x.dtype, torch.float32))
        start, end = rois[:, 1:3] * scale - 0.5, rois[:, 3:5] * scale - 0.5
        for image in range(len(x)):
            of_image = (rois[:, 0] == image).nonzero().flatten()
            # [H, C, W] as a matrix [H, C * W]: one product for the rows of all regions.
            rows = maps[image].transpose(0, 1).flatten(1)
            for at in of_image.split(CHUNK):
                over_x = _axis_weights(start[at, 0], end[at, 0], size, x.shape[-1]).to(maps.dtype)
                over_y = _axis_weights(start[at, 1], end[at, 1], size, x.shape[-2]).to(maps.dtype)
                columns = (over_y.flatten(0, 1) @ rows).view(len(at), size * x.shape[1], x.shape[-1])
                bins = columns @ over_x.transpose(1, 2)
                parts.append(bins.view(len(at), size, x.shape[1], size).transpose(1, 2))
                order.append(at)
    if not parts:
        return x.new_zeros((0, x.shape[1], size, size)) + 0 * x.sum()
    return torch.cat(parts)[torch.cat(order).argsort()].to(x.dtype)


def _axis_weights(start: Tensor, end: Tensor, bins: int, side: int) -> Tensor:
    """Return the weight of each of the `side` positions of an axis in each bin, `[K, bins, side]`.

    A bin takes as many samples as it has positions, rounded up, at equal distances. A sample within one position of the
    border takes the border's value, and one farther out counts zero.
    """
    length = end - start
    count = (length / bins).ceil().clamp(min=0)
    most = int(count.max().item()) if len(count) else 0
    number = torch.arange(most, device=start.device)
    place = (number + 0.5) / count.clamp(min=1)[:, None]
    bin_start = start[:, None] + torch.arange(bins, device=start.device) * (length / bins)[:, None]
    samples = bin_start[..., None] + place[:, None] * (length / bins)[:, None, None]
    counts = (number < count[:, None])[:, None] & (samples >= -1) & (samples <= side)
    positions = torch.arange(side, device=start.device)
    distance = (samples.clamp(0, side - 1)[..., None] - positions).abs()
    weights = (1 - distance).clamp(min=0) * counts[..., None]
    return weights.sum(dim=2) / count.clamp(min=1)[:, None, None]
