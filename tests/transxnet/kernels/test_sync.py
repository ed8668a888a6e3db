"""SyncBatchNorm on the kernels: two ranks with parts of a batch against one process with the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

from tests.transxnet.kernels.compare import DEVICE
from transxnet.backend import norm_has_kernels
from transxnet.ffn import MultiScaleFFN
from transxnet.layers import ScaledResidual
from transxnet.mixer import DynamicConv, SpatialReduction, SpatialReductionAttention

BATCH, DIM, SIDES = 3, 5, (9, 7)
PARTS = (slice(0, 1), slice(1, 3))


class HalfBlock(nn.Module):
    """IDConv, OSRA and the feed-forward half of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.local = DynamicConv(DIM, 2, "auto")
        for parameter in (self.local.weight, self.local.bias):
            nn.init.normal_(parameter)
        self.attention = SpatialReductionAttention(DIM, 1, 2, "auto")
        assert isinstance(self.attention.reduction, SpatialReduction)
        # With a small eps this norm would cancel the scale before it, whose gradient would be 0 up to rounding.
        self.attention.reduction.scale.norm.eps = 10.0
        self.bias = nn.Parameter(torch.randn(1, 1, SIDES[0] * SIDES[1], 20))
        self.mlp = MultiScaleFFN(DIM, 2, "auto")
        self.residual = ScaledResidual(DIM, 0.5, 0.0, "auto")

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.local(x), self.bias)
        return self.residual(x, self.mlp(x))


def _train(half: nn.Module, part: slice) -> dict[str, Tensor]:
    """Return output, gradients and statistics of one forward and backward on a part of the batch."""
    torch.manual_seed(0)
    x, weight = (torch.randn(BATCH, DIM, *SIDES)[part].contiguous() for _ in range(2))
    x.requires_grad_()
    out = half.train()(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    found = {"output": out.detach(), "d x": x.grad} | dict(half.named_buffers())
    return found | {f"d {name}": parameter.grad for name, parameter in half.named_parameters()}


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(1)
    half = HalfBlock()
    for module in (half.local, half.attention, half.mlp, half.residual):
        module.backend = "triton"
    half = nn.SyncBatchNorm.convert_sync_batchnorm(half)
    assert all(norm_has_kernels(norm) for norm in half.modules() if isinstance(norm, nn.SyncBatchNorm))
    torch.save(_train(half, PARTS[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="needs the interpreter: two ranks cannot share a GPU")
def test_two_ranks_match_one_process_with_the_whole_batch(tmp_path: Path):
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    torch.manual_seed(1)
    whole = _train(HalfBlock(), slice(None))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, wanted in whole.items():
        if name in ("output", "d x"):
            found = torch.cat([rank[name] for rank in ranks])
        elif name.startswith("d "):
            found = sum(rank[name] for rank in ranks)
        else:
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            found = ranks[0][name]
        error = (found - wanted).abs().max()
        assert error <= 1e-4 * wanted.abs().max() + 2e-5, f"{name}: {error:.2e} of {wanted.abs().max():.2e}"
