"""Predict the time of every kernel of a training step from its bytes and its compiled instructions, without a GPU.

    python -m tests.benchmarks.predict [--model transxnet_t] [--batch 128]

The step runs on meta tensors (`traffic`), and each distinct launch is compiled for sm_90 as on a GPU. Its instructions
are counted in the machine code; those inside a loop count as often as the loop runs. A kernel's predicted time is the
longer of two: its bytes at 4.3 TB/s, and its warp instructions at one per cycle for each of an H200's 4 x 132
schedulers at 1.755 GHz. Waits, cache misses and tails are left out: this is a prediction, not a measurement.
"""

import argparse
from collections import Counter, defaultdict
from typing import Any

BYTES_A_SECOND = 4.3e12
WARP_INSTRUCTIONS_A_SECOND = 4 * 132 * 1.755e9


def main() -> None:
    """Count, compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transxnet_t")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    from tests.benchmarks.traffic import count_step

    step = count_step(options.model, "triton", batch=options.batch)
    seconds: defaultdict[str, float] = defaultdict(float)
    seen: dict[Any, float] = {}
    for kernel, given in step.kernels:
        key = _key(kernel, given)
        if key not in seen:
            seen[key] = _instructions(kernel, given) / WARP_INSTRUCTIONS_A_SECOND
        seconds[kernel.fn.__name__] += seen[key]
    print(f"{options.model}, batch {options.batch}, bf16, sm_90: {len(seen)} distinct launches of {len(step.kernels)}")
    print(
        f"  {'kernel':28s} {'launches':>8s} {'GB':>7s} {'bytes ms':>9s} {'instructions ms':>16s} {'predicted ms':>13s}"
    )
    total: Counter[str] = Counter()
    for name, moved in step.moved.most_common():
        byte_ms, instruction_ms = moved / BYTES_A_SECOND * 1e3, seconds[name] * 1e3
        longer = max(byte_ms, instruction_ms)
        total["bytes"] += byte_ms  # pyright: ignore[reportArgumentType]
        total["predicted"] += longer  # pyright: ignore[reportArgumentType]
        if longer >= 0.05:
            row = f"{step.launches[name]:8d} {moved / 1e9:7.2f} {byte_ms:9.2f} {instruction_ms:16.2f} {longer:13.2f}"
            print(f"  {name:28s} {row}")
    for name, milliseconds in total.items():
        print(f"  sum, {name:10s} {milliseconds:8.2f} ms, {options.batch / milliseconds * 1e3:,.0f} images/s")


def _key(kernel: Any, given: dict[str, Any]) -> tuple[Any, ...]:
    plain = (value if isinstance(value, int | float | tuple | bool) else str(value.dtype) for value in given.values())
    return kernel.fn.__name__, *zip(given, plain, strict=True)


def _instructions(kernel: Any, given: dict[str, Any]) -> float:
    """Return the warp instructions of one launch."""
    from tests.benchmarks import machine_code
    from tests.transxnet.kernels.aot import Launch, cuobjdump

    launch = Launch(kernel, given)
    warps, text = launch.warps, cuobjdump(launch.compile(90), "-sass")
    programs = 1
    for side in given["grid"]:
        programs *= side
    code = machine_code.parse(text)
    if kernel.fn.__name__ == "_multiscale_kernel":
        return machine_code.executed_branches(code, _scales(given)) * warps * programs
    return machine_code.executed(code, _trips(kernel.fn.__name__, given)) * warps * programs


def _trips(name: str, given: dict[str, Any]) -> list[float]:
    """Return how often the kernel's nested loops run, the outermost first."""

    def over(size: str, block: str) -> float:
        return -(-given[size] // given[block])

    if name == "_linear_kernel":
        return [over("C", "BLOCK_C")]
    if name in ("_input_gradient_kernel", "_expand_gradient_kernel", "_reduce_matrix_gradient_kernel"):
        return [over("OUT", "BLOCK_O"), *([given["splits"]] if name == "_reduce_matrix_gradient_kernel" else [])]
    if name == "_matrix_gradient_kernel":
        return [over("length", "BLOCK_P")]
    if name in ("_residual_sums_kernel", "_partial_stats_kernel") and "samples" in given:
        return [over("samples", "BLOCK_N"), over("HW", "BLOCK_P")]
    if name == "_gradient_sums_kernel":
        return [over("HW", "BLOCK_P")]
    if "CHUNK" in given:
        return [min(given["length"], given["CHUNK"]) / given["BLOCK"]]
    if name == "_merge_kernel":
        return [over("rows", "BLOCK_S")]
    if name == "_residual_parameters_kernel":
        return [over("splits", "BLOCK_S")]
    if name in ("_bias_gradient_kernel", "_mix_gradient_kernel", "_expand_matrix_kernel", "_squeeze_gradient_kernel"):
        return [given["samples"]]
    if name in ("_strided_conv_kernel", "_reduce_gradient_kernel", "_local_kernel", "_local_gradient_kernel"):
        # Without a loop over blocks of positions where one block holds them all.
        return [over("L", "BLOCK_P")] * (given["L"] > given["BLOCK_P"]) + [given["K"] ** 2 if "K" in given else 9]
    if name == "_means_kernel":
        return [given["H"] * given["W"] / given["BLOCK_X"]]
    if name == "_squeeze_kernel":
        return [over("C", "BLOCK_C")]
    if name == "_hidden_gradient_kernel":
        return [over("rows", "BLOCK_O")]
    if name == "_attention_bwd_kernel":
        return [min(given["queries_per_split"], given["L"]) / given["BLOCK_L"]]
    if name == "_conv_kernel":
        return [-(-given["H"] // (2 * given["DOWN"])), -(-given["W"] // (8 * given["ACROSS"]))]
    return []


def _scales(given: dict[str, Any]) -> dict[float, float]:
    """Map the operations of an iteration in each branch of the multi-scale kernel to how often its loop runs."""
    products = 2 * given["SAMPLES"] * given["ACROSS"] * (2 if given["BACKWARD"] else 1)
    halves, quarters = -(-given["H"] // 2), -(-given["H"] // 4)
    return {0.0: halves, products * 64.0 * 16: halves, products * 128.0 * 32: quarters, products * 128.0 * 16: halves}


if __name__ == "__main__":
    main()
