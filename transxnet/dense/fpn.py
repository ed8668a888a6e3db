"""The feature pyramid that every dense network puts on the backbone's maps.

Source: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144, in the form of upstream's
recipes: no norms, no activations, nearest-neighbour upsampling.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CHANNELS", "Extra", "FeaturePyramid"]

CHANNELS = 256
Extra = Literal["none", "pool", "convs"]


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum, and a 3x3 convolution on each level.

    Args:
        dims: channels of the maps, finest first.
        channels: channels of every level that is returned.
        extra: the levels coarser than the maps. `pool`: one, every second value of the coarsest level (Mask R-CNN's
            P6). `convs`: two, 3x3 convolutions of stride 2, the first on the coarsest map itself, the second on the
            first without an activation between (RetinaNet's P6 and P7).
    """

    def __init__(self, dims: Sequence[int], channels: int = CHANNELS, extra: Extra = "none") -> None:
        super().__init__()
        self.extra: Extra = extra
        self.laterals = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in dims)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in dims)
        if extra == "convs":
            self.outputs.append(nn.Conv2d(dims[-1], channels, 3, stride=2, padding=1))
            self.outputs.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels `[N, channels, H_l, W_l]`, finest first, of the maps `[N, dims[l], H_l, W_l]`."""
        tops = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
        for level in reversed(range(len(tops) - 1)):
            size = tops[level].shape[-2:]
            tops[level] = tops[level] + F.interpolate(tops[level + 1], size=size, mode="nearest")
        levels = [conv(x) for conv, x in zip(self.outputs, tops, strict=False)]
        if self.extra == "pool":
            # Max pooling of one pixel; its gradient on CUDA devices would not be deterministic.
            levels.append(levels[-1][..., ::2, ::2].contiguous())
        elif self.extra == "convs":
            sixth, seventh = self.outputs[-2:]
            levels.append(sixth(maps[-1]))
            levels.append(seventh(levels[-1]))
        return levels


def _initialise(module: nn.Module) -> None:
    """Initialise as upstream: Xavier uniform, zero biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
