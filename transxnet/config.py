"""The configuration of a TransXNet (widths, depths, heads) and its four named variants.

The module does not import torch, so that a command line can check a model's configuration before it imports anything
slow.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["BACKENDS", "VARIANTS", "Backend", "TransXNetConfig", "config_for"]

Backend = Literal["auto", "reference", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
STAGES = 4


@dataclass(frozen=True, kw_only=True)
class TransXNetConfig:
    """The full configuration of a TransXNet, checked when it is made.

    Attributes:
        name: the variant, also the name under which a trained model is registered.
        depths: number of blocks of each stage.
        dims: number of channels of each stage; half of them go through IDConv and half through OSRA.
        num_heads: number of attention heads of each stage; it divides half of the stage's channels.
        num_groups: number of learned kernels per channel that IDConv mixes, of each stage (at least 2).
        sr_ratios: stride of OSRA's spatial reduction in each stage; 1 means no reduction.
        mlp_ratios: MS-FFN's hidden channels divided by the stage's channels.
        layer_scale_init: initial weight of both LayerScales of a block.
        num_classes: number of outputs of the classifier.
        image_size: side in pixels that the position bias tables are made for. For other inputs the tables are
            interpolated.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 at the first.
        out_norms: whether `forward_features` normalises the stage maps, as upstream's backbone of dense networks does:
            all, none, or those of these stages.
        backend: `reference` (plain PyTorch), `triton` (this package's kernels), or `auto`: triton on a CUDA device that
            supports it, otherwise reference.

    Raises:
        ValueError: no model can be built from a value.
    """

    name: str
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    num_groups: tuple[int, int, int, int]
    sr_ratios: tuple[int, int, int, int] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, int, int, int] = (4, 4, 4, 4)
    layer_scale_init: float = 1e-5
    num_classes: int = 1000
    image_size: int = 224
    drop_path_rate: float = 0.0
    out_norms: bool | tuple[int, ...] = False
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for field in ("depths", "dims", "num_heads", "num_groups", "sr_ratios", "mlp_ratios"):
            values = getattr(self, field)
            if len(values) != STAGES or any(value < 1 for value in values):
                raise ValueError(f"{self.name}: {field} is {values}, needs four positive integers")
        for stage, (dim, heads, groups) in enumerate(zip(self.dims, self.num_heads, self.num_groups, strict=True)):
            if dim % 2 or (dim // 2) % heads:
                raise ValueError(f"{self.name}: stage {stage}: half of dims {dim} must be a multiple of {heads} heads")
            if groups < 2:
                raise ValueError(f"{self.name}: stage {stage}: num_groups is {groups}, IDConv mixes at least 2")
        if self.num_classes < 1:
            raise ValueError(
                f"num_classes is {self.num_classes}, needs at least 1 (for the maps alone use forward_features)"
            )
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, needs a positive number of pixels")
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}, needs 0 <= rate < 1")
        if not set(self.norm_stages()) <= set(range(STAGES)):
            raise ValueError(f"out_norms is {self.out_norms}, needs True, False or stages from 0 to {STAGES - 1}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}, choose one of {', '.join(BACKENDS)}")

    def grids(self) -> list[tuple[int, int]]:
        """Return the side lengths (of the queries' grid, of the keys' grid) of the four stages at `image_size`."""
        side = -(-self.image_size // 4)
        grids = []
        for ratio in self.sr_ratios:
            grids.append((side, -(-side // ratio)))
            side = -(-side // 2)
        return grids

    def norm_stages(self) -> tuple[int, ...]:
        """Return the stages whose maps `forward_features` normalises."""
        if isinstance(self.out_norms, bool):
            return tuple(range(STAGES)) if self.out_norms else ()
        return tuple(self.out_norms)

    def drop_paths(self) -> list[list[float]]:
        """Return the drop rate of each block by stage: linear from 0 at the first block to `drop_path_rate`."""
        last = max(sum(self.depths) - 1, 1)
        rates = [self.drop_path_rate * index / last for index in range(sum(self.depths))]
        starts = [sum(self.depths[:stage]) for stage in range(STAGES)]
        return [rates[start : start + depth] for start, depth in zip(starts, self.depths, strict=True)]


VARIANTS: dict[str, TransXNetConfig] = {
    config.name: config
    for config in (
        TransXNetConfig(
            name="transxnet_n",
            depths=(1, 1, 2, 1),
            dims=(32, 64, 112, 192),
            num_heads=(1, 1, 2, 4),
            num_groups=(2, 2, 2, 2),
            layer_scale_init=0.1,
        ),
        TransXNetConfig(
            name="transxnet_t",
            depths=(3, 3, 9, 3),
            dims=(48, 96, 224, 448),
            num_heads=(1, 2, 4, 8),
            num_groups=(2, 2, 2, 2),
            drop_path_rate=0.1,
        ),
        TransXNetConfig(
            name="transxnet_s",
            depths=(4, 4, 12, 4),
            dims=(64, 128, 320, 512),
            num_heads=(1, 2, 5, 8),
            num_groups=(2, 2, 3, 4),
            mlp_ratios=(6, 6, 4, 4),
            drop_path_rate=0.2,
        ),
        TransXNetConfig(
            name="transxnet_b",
            depths=(4, 4, 21, 4),
            dims=(76, 152, 336, 672),
            num_heads=(2, 4, 8, 16),
            num_groups=(2, 2, 4, 4),
            mlp_ratios=(8, 8, 4, 4),
            drop_path_rate=0.4,
        ),
    )
}


def config_for(name: str, **overrides: Any) -> TransXNetConfig:
    """Return the configuration of the variant `name`, with fields replaced.

    Raises:
        ValueError: a variant or field does not exist, or a value does not fit.
    """
    if name not in VARIANTS:
        raise ValueError(f"there is no model {name!r}, choose one of {', '.join(VARIANTS)}")
    fields = {field.name for field in dataclasses.fields(TransXNetConfig)}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(fields))}")
    return dataclasses.replace(VARIANTS[name], **overrides)
