"""Every kernel compiled ahead of time for GPUs that need not be there: no register spilled, shared memory in bounds.

Configurations are those a training step of TransXNet-T launches at 224 px in bf16, and B's odd head width. The stack
of a program is where spilled registers go; these kernels have no other use for one.
"""

from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.transxnet.kernels.aot import compile_kernel
from transxnet.kernels import (
    activation,
    attention,
    depthwise_conv,
    expansion,
    group_norm,
    kernel_generation,
    kernel_gradients,
    linear,
    means,
    multiscale_ffn,
    residual,
    spatial_reduction,
    statistics,
    strided_conv,
)

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
    "doffset",
    "dmatrix",
    "w3",
    "b1",
    "b3",
    "b5",
    "b7",
    "w5",
    "w7",
    "squeeze",
    "expand",
    "shift",
    "taps",
    "dkernel",
    "found",
)
FLOATS = ("scale", "momentum", "eps", "inverse_count", "count")

HEADS = {"HEADS": 1, "D": 24, "BLOCK_D": 32, "BLOCK_M": 64}


def _tiles(side: int, *, per_sample: bool = False) -> depthwise_conv.Tiling:
    return depthwise_conv.tiling(128, side, side, per_sample=per_sample)


def _middle_tiles(side: int, backward: bool) -> depthwise_conv.Tiling:
    most = multiscale_ffn.BACKWARD_TILES if backward else depthwise_conv.TILES
    return depthwise_conv.tiling(128, side, side, most=most)


def _without_warps(tiles: depthwise_conv.Tiling) -> dict[str, int]:
    return {name: value for name, value in tiles.options().items() if name != "num_warps"}


def _generation(c: int, squeezed: int, groups: int) -> kernel_generation.Sizes:
    return kernel_generation.Sizes(128, c, squeezed, groups, 7)


def _map_tiles(side: int, stride: int, taps: int) -> dict[str, int]:
    tiles = strided_conv.Map(128, 24, side, side, taps, stride).tiles()
    assert tiles.pop("num_warps") == 1
    return tiles


def _reduction(side: int, stride: int, taps: int) -> list[tuple[str, Any, dict[str, Any]]]:
    here = {"L": 49, "KEYS_W": 7}
    there = {"H": side, "W": side, "K": taps, "STRIDE": stride}
    return [
        ("reduction", strided_conv._reduce_kernel, here | there),
        ("reduction's scale", spatial_reduction._scale_kernel, {"L": 49}),
        ("reduction's 3x3", spatial_reduction._local_kernel, here),
        ("reduction's 3x3 gradient", spatial_reduction._local_gradient_kernel, here),
        ("reduction's scale gradient", spatial_reduction._scale_gradient_kernel, {"L": 49, "BATCH": True}),
        (
            "reduction's gradient",
            spatial_reduction._reduce_gradient_kernel,
            {**here, **there, "BATCH": True, "BLOCK_K": 128 if taps > 5 else 32},
        ),
    ]


def _columns(side: int, rows: int, most: int) -> int:
    return linear.columns(linear.block(rows, most), 128 * side * side, side * side)


def _depth(rows: int, side: int, *, normalised: bool) -> int:
    return linear._gradient_columns(linear._gradient_rows(rows, side * side, normalised=normalised))


LAUNCHES: list[tuple[str, Any, dict[str, Any], int]] = [
    ("pieces", activation._pieces_kernel, {"GELU": True, "BLOCK_N": 1, "BLOCK_P": 1024}, 4),
    *(
        (
            f"statistics {name}",
            statistics._merge_kernel,
            {"TO_PIECE": to_piece, "OF_RANKS": of_ranks, "BLOCK_S": 32, "BLOCK_C": 32},
            4,
        )
        for name, to_piece, of_ranks in (("alone", False, False), ("of a rank", True, False), ("of ranks", False, True))
    ),
    *(
        (
            f"{'linear' if norm else 'expand'} at {side}, {c} to {out}",
            linear._linear_kernel,
            {
                "NORM": norm, "HAS_OFFSET": norm, "KEEP": not norm, "PIECES": True, "GELU": not norm, "HW": side * side,
                "TURNED": False,
                "BLOCK_O": linear.block(out, linear.WIDE_ROWS if norm else linear.ROWS),
                "BLOCK_P": _columns(side, out, linear.WIDE_ROWS if norm else linear.ROWS),
                "BLOCK_C": linear.block(c, linear.DEPTH // 2 if norm and out > 128 else linear.DEPTH),
            },
            linear.WARPS,
        )
        for side, c, out, norm in ((56, 48, 192, False), (56, 192, 48, True), (14, 896, 224, True), (7, 16, 448, True))
    ),
    *(
        (
            f"matrix gradient {c} to {out}{', normalised' if norm else ''} at {side}",
            linear._matrix_gradient_kernel,
            {
                "HW": side * side, "NORM": norm, "TOTAL": norm,
                "BLOCK_O": linear._gradient_rows(out, side * side, normalised=norm),
                "BLOCK_C": linear.block(c, linear.COLUMNS), "BLOCK_P": _depth(out, side, normalised=norm),
            },
            linear.WARPS,
        )
        for side, c, out, norm in (
            (56, 48, 192, False), (56, 192, 48, True), (14, 896, 224, True), (7, 1792, 448, True)
        )
    ),
    *(
        (
            f"projection at {side}, {c} to {out}{', turned' if turned else ''}",
            linear._linear_kernel,
            {
                "NORM": False, "HAS_OFFSET": not turned, "KEEP": False, "PIECES": False, "GELU": False,
                "HW": side * side, "TURNED": turned,
                "BLOCK_O": linear.block(out, linear.ROWS), "BLOCK_P": _columns(side, out, linear.ROWS),
                "BLOCK_C": linear.block(c, linear.DEPTH),
            },
            linear.WARPS,
        )
        for side, c, out, turned in ((56, 24, 24, False), (56, 24, 24, True), (7, 224, 448, False), (7, 448, 224, True))
    ),
    *(
        (
            f"projection's matrix gradient {c} to {out} at {side}",
            linear._matrix_gradient_kernel,
            {
                "HW": side * side, "NORM": False, "TOTAL": True, "BLOCK_P": _depth(out, side, normalised=False),
                "BLOCK_O": linear._gradient_rows(out, side * side, normalised=False),
                "BLOCK_C": linear.block(c, linear.COLUMNS),
            },
            linear.WARPS,
        )
        for side, c, out in ((56, 24, 24), (7, 224, 448))
    ),
    *(
        (f"{name} from {side}", kernel, options | _map_tiles(side, stride, taps), 1)
        for side, stride, taps in ((56, 8, 11), (14, 2, 5))
        for name, kernel, options in _reduction(side, stride, taps)
    ),
    *(
        (
            f"reduction's spreading to {side}",
            strided_conv._spread_kernel,
            {"H": side, "W": side, "L": 49, "KEYS_W": 7, "K": taps, "STRIDE": stride, "BLOCK": pixels},
            4,
        )
        for side, stride, taps, pixels in ((56, 8, 11, 1024), (14, 2, 5, 256))
    ),
    ("matrix gradient's end", linear._finish_kernel, {"BLOCK_O": 32, "BLOCK_C": 16}, 4),
    *(
        (
            f"linear input gradient {c} to {out} at {side}",
            linear._input_gradient_kernel,
            {
                "HW": side * side, "BATCH": True, "BLOCK_O": linear.block(out, linear.DEPTH),
                "BLOCK_C": linear.block(c, linear.COLUMNS), "BLOCK_P": _columns(side, c, linear.COLUMNS),
            },
            linear.WARPS,
        )
        for side, c, out in ((56, 192, 48), (14, 896, 224), (7, 1792, 448))
    ),
    *(
        (
            f"expand gradient {c} to {4 * c} at {side}",
            expansion._expand_gradient_kernel,
            {
                "HW": side * side, "BATCH": True, "BLOCK_O": 32, "BLOCK_C": linear.block(c, linear.WIDE_ROWS),
                "BLOCK_P": _columns(side, c, linear.WIDE_ROWS),
            },
            linear.WARPS,
        )
        for side, c in ((56, 48), (28, 96), (7, 224))
    ),
    ("group norm pieces", group_norm._pieces_kernel, {"CHUNK": 8192, "BLOCK": 1024}, 4),
    ("group norm", group_norm._apply_kernel, {"HW": 3136, "CHUNK": 8192, "BLOCK": 1024, "BLOCK_K": 32}, 4),
    ("group norm gradient sums", group_norm._gradient_sums_kernel, {"HALVES": True, "BLOCK_C": 16, "BLOCK_P": 64}, 4),
    (
        "group norm gradient",
        group_norm._apply_gradient_kernel,
        {"HALVES": True, "HW": 196, "CHUNK": 8192, "BLOCK": 1024, "BLOCK_C": 1024},
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
    ("residual gradient's end", residual._residual_end_kernel, {"BLOCK_S": 32, "BLOCK_C": 32}, 4),
    (
        "residual gradient",
        residual._residual_bwd_kernel,
        {"C": 48, "HW": 49, "HAS_FACTOR": True, "HAS_ADDEND": True, "BATCH": True, "WIDE": False, "BLOCK": 1024},
        4,
    ),
    *(
        (
            f"depthwise{' gradient' if backward else ''}{' per sample' if per_sample else ''} at {side}",
            depthwise_conv._conv_kernel,
            {
                "H": side, "W": side, "K": 7, "BACKWARD": backward, "RESIDUAL": not per_sample, "FORK": False,
                "PER_SAMPLE": per_sample, **_without_warps(_tiles(side, per_sample=per_sample)),
            },
            _tiles(side, per_sample=per_sample).warps,
        )
        for side in (56, 28, 14, 7) for backward in (False, True) for per_sample in (False, True)
    ),
    *(
        (
            f"depthwise gradient at a fork at {side}",
            depthwise_conv._conv_kernel,
            {
                "H": side, "W": side, "K": 3, "BACKWARD": True, "RESIDUAL": False, "FORK": True, "PER_SAMPLE": False,
                **_without_warps(_tiles(side)),
            },
            _tiles(side).warps,
        )
        for side in (56, 7)
    ),
    *(
        (f"{name} at {side}", kernel, {"H": side, "W": side, "K": 7, **means._blocks(24, side, side, 7)}, 4)
        for name, kernel in (("means", means._means_kernel), ("means' gradient", means._means_gradient_kernel))
        for side in (56, 18, 7)
    ),
    *(
        (
            f"{name}, {sizes.c} channels, {sizes.groups} groups",
            kernel,
            {**{name: value for name, value in sizes.whole().items() if name != "num_warps"}, **blocks},
            kernel_generation.WARPS,
        )
        for sizes in (_generation(24, 6, 2), _generation(224, 56, 2), _generation(336, 84, 4))
        for name, kernel, blocks in (
            ("squeezing", kernel_generation._squeeze_kernel, {"BLOCK_C": sizes.channels()}),
            ("mixing", kernel_generation._mix_kernel, sizes.mixed()),
            ("mixing's gradient", kernel_gradients._mix_gradient_kernel, sizes.mixed()),
            ("expansion's gradient", kernel_gradients._expand_matrix_kernel, {"BLOCK_O": kernel_generation.ROWS}),
            ("hidden's gradient", kernel_gradients._hidden_gradient_kernel, {"BLOCK_O": kernel_generation.CHANNELS}),
            (
                "squeezing's gradient",
                kernel_gradients._squeeze_gradient_kernel,
                {"BLOCK_C": sizes.channels(), "BATCH": True},
            ),
        )
    ),
    *(
        (
            f"multi-scale {'gradient ' if backward else ''}at {side}",
            multiscale_ffn._middle_kernel,
            {
                "H": side, "W": side, "BACKWARD": backward, "SAMPLES": _middle_tiles(side, backward).samples,
                "ACROSS": _middle_tiles(side, backward).across,
            },
            _middle_tiles(side, backward).warps,
        )
        for side in (56, 28, 14, 7) for backward in (False, True)
    ),
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
# One launch of every kernel; the others are minutes.
QUICK = {kernel: name for name, kernel, _, _ in LAUNCHES}.values()


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
    stages = 1 if "ACROSS" in constants else 3
    if kernel is kernel_gradients._squeeze_gradient_kernel:
        stages = kernel_gradients.STAGES
    usage = compile_kernel(kernel, _types(kernel), constants, capability, warps=warps, stages=stages)
    assert usage.stack_bytes == 0, f"{name} spills on sm_{capability}: {usage}"
    assert usage.registers * 32 * warps <= 65536, f"{name} does not fit a multiprocessor: {usage}"
    assert usage.shared_bytes <= SHARED_LIMIT[capability], f"{name} on sm_{capability}: {usage}"
