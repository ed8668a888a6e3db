"""Predicted time of every kernel of a training step, from its bytes and from its compiled instructions. Needs no GPU.

    python -m tests.benchmarks.predict [--model transxnet_t] [--batch 128]

The step runs on meta tensors (`traffic`), and each distinct launch is compiled for sm_90 as it would be on a GPU. Its
instructions are counted in the machine code; those inside a loop count as often as the loop runs. A kernel's predicted
time is the longer of two: its bytes at 4.3 TB/s, and its warp instructions at one a cycle for each of a H200's 4 x 132
schedulers at 1.755 GHz. Neither waits, nor caches that miss, nor tails are in it: a prediction, not a measurement.
"""

import argparse
import re
from collections import Counter, defaultdict
from typing import Any

BYTES_A_SECOND = 4.3e12
WARP_INSTRUCTIONS_A_SECOND = 4 * 132 * 1.755e9
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*?);")


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
    """Warp instructions of one launch."""
    from tests.transxnet.kernels.aot import build, cuobjdump

    constants = {parameter.name: given[parameter.name] for parameter in kernel.params if parameter.is_constexpr}
    types, aligned = {}, []
    for name in kernel.arg_names:
        value = given[name]
        if hasattr(value, "dtype"):
            types[name] = {"float32": "*fp32", "bfloat16": "*bf16", "int64": "*i64"}[str(value.dtype).split(".")[1]]
        elif name not in constants:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                aligned.append(name)
    warps, stages = given.get("num_warps", 4), given.get("num_stages", 3)
    text = cuobjdump(build(kernel, types, constants, 90, warps=warps, stages=stages, aligned=aligned), "-sass")
    programs = 1
    for side in given["grid"]:
        programs *= side
    return _weighted(text, _trips(kernel.fn.__name__, given)) * warps * programs


def _trips(name: str, given: dict[str, Any]) -> list[float] | None:
    """How often the kernel's nested loops run, the outermost first; None for the multi-scale kernel."""
    if name == "_middle_kernel":
        return None

    def over(size: str, block: str) -> float:
        return -(-given[size] // given[block])

    if name == "_linear_kernel":
        return [over("C", "BLOCK_C")]
    if name in ("_input_gradient_kernel", "_expand_gradient_kernel", "_finish_kernel"):
        return [over("OUT", "BLOCK_O"), *([given["splits"]] if name == "_finish_kernel" else [])]
    if name == "_matrix_gradient_kernel":
        return [given["samples"], over("HW", "BLOCK_P")]
    if name in ("_residual_sums_kernel", "_pieces_kernel") and "samples" in given:
        return [over("samples", "BLOCK_N"), over("HW", "BLOCK_P")]
    if name == "_gradient_sums_kernel":
        return [over("HW", "BLOCK_P")]
    if "CHUNK" in given:
        return [min(given["length"], given["CHUNK"]) / given["BLOCK"]]
    if name == "_merge_kernel":
        return [over("rows", "BLOCK_S")]
    if name == "_bias_gradient_kernel":
        return [given["samples"]]
    if name == "_attention_bwd_kernel":
        return [min(given["lines_per_split"], given["L"]) / given["BLOCK_L"]]
    if name == "_conv_kernel":
        return [given["K"]] * 2
    return []


def _weighted(text: str, trips: list[float] | None) -> float:
    """Instructions in the machine code, each as often as the loops around it run.

    Without `trips` it is the multi-scale kernel, of whose programs a quarter takes each branch. Its loops go over 3, 5
    and 7 rows of taps, the longer the code the more taps; what lies between them is one branch's.
    """
    found = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(text) if not name.startswith("NOP")]
    loops = []
    for at, name, rest in found:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    if trips is None:
        outer = [loop for loop in loops if not any(a <= loop[0] and loop[1] <= b and (a, b) != loop for a, b in loops)]
        assert len(outer) == 3, f"{len(outer)} loops in place of one each for 3, 5 and 7 rows"
        rows = dict(zip(sorted(outer, key=lambda loop: loop[1] - loop[0]), (3, 5, 7), strict=True))
        start, end = min(outer)[0], max(last for _, last in outer)
    total = 0.0
    for at, _, _ in found:
        depth = sum(first <= at <= last for first, last in loops)
        if trips is None:
            count = next((count for (first, last), count in rows.items() if first <= at <= last), 1)
            total += count**depth / 4 if start <= at <= end else 1
            continue
        weight = 1.0
        for trip in trips[:depth]:
            weight *= trip
        total += weight
    return total


if __name__ == "__main__":
    main()
