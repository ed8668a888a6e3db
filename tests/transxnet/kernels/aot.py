"""Kernels compiled ahead of time for a GPU that need not be there, and what the machine code uses."""

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Usage:
    """What one program of a compiled kernel takes."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    warps: int


def build(
    kernel: Any,
    dtypes: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    *,
    warps: int = 4,
    stages: int = 3,
    aligned: Collection[str] = (),
) -> Any:
    """What triton compiles for compute capability `capability` (80, 90): its `asm` and `metadata`.

    Args:
        kernel: a `triton.jit` function.
        dtypes: argument name to type, as triton writes them (`*bf16`, `i32`, `fp32`).
        constants: the constexpr arguments.
        capability: the GPU's compute capability times ten.
        warps: warps of a program.
        stages: how far loads run ahead of a loop.
        aligned: integer arguments that are multiples of 16; pointers are, as those of tensors are.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else dtypes[name] for name in names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in aligned
    }
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(k),): v for k, v in constants.items()}, attrs=attrs
    )
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )


def cuobjdump(compiled: Any, option: str) -> str:
    """What `cuobjdump` says of the machine code."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        return subprocess.run([str(CUOBJDUMP), option, str(cubin)], capture_output=True, text=True, check=True).stdout


def compile_kernel(
    kernel: Any, dtypes: dict[str, str], constants: dict[str, Any], capability: int, *, warps: int = 4, stages: int = 3
) -> Usage:
    """Compile as `build` does, and read what a program takes."""
    compiled = build(kernel, dtypes, constants, capability, warps=warps, stages=stages)
    text = cuobjdump(compiled, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return Usage(int(found[1]), int(found[2]), compiled.metadata.shared, warps)
