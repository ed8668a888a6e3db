"""Kernels compiled ahead of time for a GPU that need not be there, and what the machine code uses."""

import re
import subprocess
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


def compile_kernel(
    kernel: Any, dtypes: dict[str, str], constants: dict[str, Any], capability: int, *, warps: int = 4
) -> Usage:
    """Compile for compute capability `capability` (80, 90).

    Args:
        kernel: a `triton.jit` function.
        dtypes: argument name to type, as triton writes them (`*bf16`, `i32`, `fp32`).
        constants: the constexpr arguments.
        capability: the GPU's compute capability times ten.
        warps: warps of a program.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else dtypes[name] for name in names}
    # Pointers are 16-byte aligned, as those of tensors are.
    attrs = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(k),): v for k, v in constants.items()}, attrs=attrs
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        text = subprocess.run(
            [str(CUOBJDUMP), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return Usage(int(found[1]), int(found[2]), compiled.metadata.shared, warps)
