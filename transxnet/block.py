"""A TransXNet block, and a stage of several blocks."""

from torch import Tensor, nn

from transxnet.config import Backend, TransXNetConfig
from transxnet.depthwise import PositionConv
from transxnet.ffn import MultiScaleFFN
from transxnet.layers import ConvNorm, PositionBias, ScaledResidual, fork_group_norm
from transxnet.mixer import TokenMixer

__all__ = ["Block", "Stage"]


class Block(nn.Module):
    """Position embedding, token mixer and feed-forward; each of the latter two is normalised before and scaled after.

    The last BatchNorm of each branch is in its `ScaledResidual`.
    """

    def __init__(self, config: TransXNetConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.backend: Backend = config.backend
        self.position = PositionConv(dim, config.backend)
        self.norm1 = nn.GroupNorm(1, dim)
        self.token_mixer = TokenMixer(
            dim,
            num_groups=config.num_groups[stage],
            num_heads=config.num_heads[stage],
            sr_ratio=config.sr_ratios[stage],
            backend=config.backend,
        )
        self.residual1 = ScaledResidual(dim, config.layer_scale_init, drop_path, config.backend)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = MultiScaleFFN(dim, config.mlp_ratios[stage], config.backend)
        self.residual2 = ScaledResidual(dim, config.layer_scale_init, drop_path, config.backend)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the output, shaped like `x` `[N, C, H, W]`; `bias` is what the stage's `PositionBias` returns."""
        x = self.position(x)
        halves, x = fork_group_norm(x, self.norm1, self.backend, parts=2)
        x = self.residual1(x, self.token_mixer(*halves, bias))
        (normed,), x = fork_group_norm(x, self.norm2, self.backend)
        return self.residual2(x, self.mlp(normed))


class Stage(nn.Module):
    """Downsampling (from the second stage on), then blocks that share one position bias."""

    def __init__(self, config: TransXNetConfig, stage: int) -> None:
        super().__init__()
        queries, keys = config.grids()[stage]
        self.sr_ratio = config.sr_ratios[stage]
        self.downsample = (
            ConvNorm(config.dims[stage - 1], config.dims[stage], 3, stride=2) if stage > 0 else nn.Identity()
        )
        self.position_bias = PositionBias(config.num_heads[stage], queries**2, keys**2)
        self.blocks = nn.ModuleList(Block(config, stage, rate) for rate in config.drop_paths()[stage])

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N, C, ceil(H / 2), ceil(W / 2)]` of `[N, C_in, H, W]`; the first stage keeps the size."""
        x = self.downsample(x)
        height, width = x.shape[-2:]
        keys = -(-height // self.sr_ratio) * -(-width // self.sr_ratio)
        bias = self.position_bias(height * width, keys)
        for block in self.blocks:
            x = block(x, bias)
        return x
