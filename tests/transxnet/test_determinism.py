"""Every network computes the same bits twice, and PyTorch's deterministic mode has nothing to refuse."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import transxnet
from tests.benchmarks.traffic import count_step
from tests.transxnet.dense.scenes import BOXES, LABELS, SIZES, batch, masks
from tests.transxnet.fixtures import images
from transxnet import dense
from transxnet.dense import roi

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "transxnet": (
        lambda: transxnet.transxnet_n(num_classes=3, image_size=32, backend="reference"),
        lambda network: network(images(2, 300, 420)).sum(),
    ),
    "semantic_fpn": (
        lambda: dense.semantic_fpn("n", 3, image_size=32, backend="reference"),
        lambda network: network(images(2, 61, 90), torch.arange(2 * 61 * 90).view(2, 61, 90) % 3)["loss_ce"],
    ),
    "retinanet": (
        lambda: dense.retinanet("n", 3, image_size=32, backend="reference"),
        lambda network: torch.stack(list(network(batch(), SIZES, BOXES, LABELS).values())).sum(),
    ),
}
"""Networks, and a loss of each."""
MASK_RCNN = (
    lambda: dense.mask_rcnn("n", 3, image_size=32, backend="reference"),
    lambda network: sum(network(batch(), SIZES, BOXES, LABELS, masks(BOXES), [11, 12]).values()),
)
"""Its losses are drawn; that they are a function of the draws alone is tested in `dense/test_mask_rcnn.py`."""


class Recording(TorchDispatchMode):
    """Adds the names of the operators that run to `used`."""

    def __init__(self, used: set[str]) -> None:
        super().__init__()
        self.used = used

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.used.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "transxnet" else pytest.mark.thorough) for name in NETWORKS]
)
def test_deterministic_algorithms_raise_nowhere_on_a_cpu_and_give_the_same_bits(name: str):
    build, loss = NETWORKS[name]
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            network = build().train()
            loss(network).backward()
            found.append([p.grad for p in network.parameters() if p.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(found[0]) > 100
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


NONDETERMINISTIC = (
    "adaptive_avg_pool", "adaptive_max_pool", "avg_pool3d", "upsample_linear", "upsample_bilinear", "upsample_bicubic",
    "upsample_trilinear", "grid_sampler", "reflection_pad", "replication_pad", "scatter", "index_add", "index_put",
    "index_copy", "embedding", "cumsum", "median", "bincount", "histc", "kthvalue", "nll_loss2d",
    "fractional_max_pool", "max_unpool", "ctc_loss", "put",
)  # fmt: skip
"""Parts of the names of operators whose CUDA kernels `torch.use_deterministic_algorithms` lists as nondeterministic."""
FORWARDS = {"_adaptive_avg_pool2d", "upsample_bilinear2d"}
"""Of those, operators whose gradient alone is nondeterministic."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("transxnet", ((203, 90), (300, 420))), ("semantic_fpn", ((50, 90),))],
)
def test_no_operator_of_a_gpu_is_documented_as_nondeterministic(name: str, sizes: tuple[tuple[int, int], ...]):
    """The operators are recorded on meta tensors, which take the same path as CUDA's."""
    used: set[str] = set()
    build, _ = NETWORKS[name]
    with torch.device("meta"):
        network = build().train()
        for size in sizes:
            labels = () if name == "transxnet" else (torch.zeros(2, *size, dtype=torch.int64),)
            with Recording(used):
                out = network(torch.randn(2, 3, *size), *labels)
                (out["loss_ce"] if labels else out.sum()).backward()
    assert len(used) > 40
    assert not {operator for operator in used - FORWARDS if any(part in operator for part in NONDETERMINISTIC)}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_operator_beside_the_kernels_is_documented_as_nondeterministic(dtype: torch.dtype):
    """Kernels add in a fixed order; the operators between their launches are PyTorch's."""
    pytest.importorskip("triton", reason="triton is not installed")
    sizes: dict[str, Any] = {"size": 300, "image_size": 224, "depths": (1, 1, 1, 1)}
    launches = count_step("transxnet_t", "triton", batch=2, dtype=dtype, **sizes).launches
    others = {name for name in launches if not name.endswith("_kernel")}
    assert 10 < len(others) < len(launches) - 20
    assert not {name for name in others if any(part in name for part in NONDETERMINISTIC)}


@pytest.mark.thorough
def test_detectors_add_no_operator_that_the_deterministic_mode_refuses():
    """Recorded on the CPU, because shapes depend on values, with the pooling of regions that CUDA devices take."""
    used: dict[str, set[str]] = {"transxnet": set(), "retinanet": set(), "mask_rcnn": set()}
    with mock.patch.object(roi, "roi_align", roi.roi_align_separable):
        for (build, loss), names in zip(
            (NETWORKS["transxnet"], NETWORKS["retinanet"], MASK_RCNN), used.values(), strict=True
        ):
            network = build().train()
            with Recording(names):
                loss(network).backward()
    added = (used["retinanet"] | used["mask_rcnn"]) - used["transxnet"]
    assert {"index_put", "torchvision::roi_align"} <= added
    # The deterministic mode gives these another algorithm.
    added -= {"index_put", "index_put_", "_index_put_impl_"}
    assert not {name for name in added if any(part in name for part in (*NONDETERMINISTIC, "roi_align_backward"))}
