"""Every kernel compiled ahead of time for GPUs that need not be there: no register spilled, shared memory in bounds.

Configurations are those a training step of TransXNet-T launches at 224 px in bf16, and B's odd head width. The stack
of a program is where spilled registers go; these kernels have no other use for one.
"""

from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.transxnet.kernels.aot import compile_kernel
from transxnet.kernels import attention, depthwise_conv, multiscale_ffn, norm_act, residual

# Half of a multiprocessor's shared memory, bytes: two programs fit at the least.
SHARED_LIMIT = {80: 163 * 1024 // 2, 90: 227 * 1024 // 2}
FP32_POINTERS = (
    "partial",
    "mean",
    "rstd",
    "sums",
    "scale",
    "offset",
    "weight",
    "bias",
    "running",
    "w1",
    "w3",
    "w5",
    "w7",
)
FLOATS = ("scale", "momentum", "eps", "inverse_count", "count")

HEADS = {"HEADS": 1, "D": 24, "BLOCK_D": 32, "BLOCK_M": 64}
LAUNCHES: list[tuple[str, Any, dict[str, Any], int]] = [
    (
        "gelu sums",
        norm_act._sums_kernel,
        {"GELU": True, "BACKWARD": False, "STORE": True, "BLOCK_N": 1, "BLOCK_P": 1024},
        4,
    ),
    (
        "gelu gradient sums",
        norm_act._sums_kernel,
        {"GELU": True, "BACKWARD": True, "STORE": False, "BLOCK_N": 16, "BLOCK_P": 64},
        4,
    ),
    ("statistics", norm_act._finish_kernel, {"GELU": True, "BLOCK_S": 32, "BLOCK_C": 32}, 4),
    ("gelu norm", norm_act._apply_kernel, {"C": 192, "HW": 3136, "WIDE": False, "BLOCK": 1024}, 4),
    (
        "gelu norm gradient",
        norm_act._apply_bwd_kernel,
        {"C": 192, "HW": 3136, "BATCH": True, "WIDE": True, "BLOCK": 1024},
        4,
    ),
    (
        "residual",
        residual._residual_fwd_kernel,
        {"C": 48, "HW": 3136, "HAS_FACTOR": True, "HAS_ADDEND": True, "WIDE": False, "BLOCK": 1024},
        4,
    ),
    (
        "residual gradient sums",
        residual._residual_sums_kernel,
        {"HAS_FACTOR": True, "HAS_ADDEND": True, "BLOCK_N": 1, "BLOCK_P": 1024},
        4,
    ),
    (
        "residual gradient",
        residual._residual_bwd_kernel,
        {"C": 48, "HW": 49, "HAS_FACTOR": True, "HAS_ADDEND": True, "BATCH": True, "WIDE": False, "BLOCK": 1024},
        4,
    ),
    *(
        (
            f"depthwise {kernel} at {side}",
            depthwise_conv._conv_kernel,
            {
                "H": side, "W": side, "K": kernel, "FLIP": flip, "HAS_BIAS": not flip, "RESIDUAL": True,
                "PER_SAMPLE": False, "BLOCK_N": min(1024 // block, 8), "BLOCK_P": block,
            },
            4,
        )
        for kernel, side, block, flip in (
            (7, 56, 1024, False), (5, 14, 256, True), (7, 7, 64, False), (1, 28, 1024, False)
        )
    ),
    (
        "dynamic",
        depthwise_conv._conv_kernel,
        {
            "H": 28, "W": 28, "K": 7, "FLIP": False, "HAS_BIAS": True, "RESIDUAL": False,
            "PER_SAMPLE": True, "BLOCK_N": 1, "BLOCK_P": 1024,
        },
        4,
    ),
    *(
        (
            f"depthwise weight gradient at {side}",
            depthwise_conv._weight_gradient_kernel,
            {"H": side, "W": side, "K": 7, "BLOCK_N": min(1024 // block, 8), "BLOCK_P": block},
            4,
        )
        for side, block in ((56, 1024), (14, 256), (7, 64))
    ),
    *(
        (
            f"multi-scale {'gradient ' if backward else ''}at {side}",
            multiscale_ffn._middle_kernel,
            {"H": side, "W": side, "BACKWARD": backward, "BLOCK_N": min(1024 // block, 8), "BLOCK_P": block},
            4,
        )
        for side, block, backward in ((56, 1024, False), (14, 256, True), (7, 64, False), (7, 64, True))
    ),
    *(
        (
            f"multi-scale weights at {side}",
            multiscale_ffn._middle_weights_kernel,
            {"H": side, "W": side, "BLOCK_N": min(1024 // block, 8), "BLOCK_P": block},
            4,
        )
        for side, block in ((56, 1024), (7, 64))
    ),
    ("multi-scale statistics", multiscale_ffn._merge_kernel, {"PIECE": 1024, "BLOCK_S": 32, "BLOCK_C": 32}, 4),
    ("attention", attention._attention_fwd_kernel, {**HEADS, "BLOCK_L": attention.FORWARD[0]}, attention.FORWARD[1]),
    (
        "attention gradient",
        attention._attention_bwd_kernel,
        {**HEADS, "BLOCK_L": attention.BACKWARD[0]},
        attention.BACKWARD[1],
    ),
    (
        "attention bias gradient",
        attention._bias_gradient_kernel,
        {**HEADS, "BLOCK_L": attention.BIAS_GRADIENT[0]},
        attention.BIAS_GRADIENT[1],
    ),
    (
        "attention gradient, width 19",
        attention._attention_bwd_kernel,
        {"HEADS": 2, "D": 19, "BLOCK_D": 32, "BLOCK_M": 64, "BLOCK_L": attention.BACKWARD[0]},
        attention.BACKWARD[1],
    ),
]  # fmt: skip
QUICK = (
    "gelu norm gradient",
    "residual gradient",
    "depthwise 7 at 56",
    "multi-scale at 7",
    "multi-scale weights at 7",
    "attention bias gradient",
)


def _types(kernel: Any) -> dict[str, str]:
    types = {}
    for name in kernel.arg_names:
        if name == "batches_ptr":
            types[name] = "*i64"
        elif name.endswith("_ptr"):
            types[name] = "*fp32" if name.startswith(FP32_POINTERS) else "*bf16"
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    "launch",
    [pytest.param(launch, id=launch[0], marks=[] if launch[0] in QUICK else [pytest.mark.slow]) for launch in LAUNCHES],
)
def test_no_spills_and_shared_memory_in_bounds(launch, capability, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    name, kernel, constants, warps = launch
    usage = compile_kernel(kernel, _types(kernel), constants, capability, warps=warps)
    assert usage.stack_bytes == 0, f"{name} spills on sm_{capability}: {usage}"
    assert usage.registers * 32 * warps <= 65536, f"{name} does not fit a multiprocessor: {usage}"
    assert usage.shared_bytes <= SHARED_LIMIT[capability], f"{name} on sm_{capability}: {usage}"
