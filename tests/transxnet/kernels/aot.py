"""Compile a kernel's launch ahead of time for a GPU that need not be present, and read what the machine code uses."""

import re
import subprocess
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
WARPS, STAGES = 4, 3
"""Triton's defaults."""


@dataclass(frozen=True)
class Usage:
    """Resources of one program of a compiled kernel."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    warps: int


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel: the kernel, and its arguments by name with its grid and options."""

    kernel: Any
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    @property
    def warps(self) -> int:
        """Number of warps of a program."""
        return self.arguments.get("num_warps", WARPS)

    @property
    def constants(self) -> dict[str, Any]:
        """The constexpr arguments."""
        return {
            parameter.name: self.arguments[parameter.name] for parameter in self.kernel.params if parameter.is_constexpr
        }

    def types(self) -> dict[str, str]:
        """Return the type of each argument, as triton writes it."""
        constants = self.constants
        types = {}
        for name in self.kernel.arg_names:
            value = self.arguments[name]
            if name in constants:
                types[name] = "constexpr"
            elif isinstance(value, Tensor):
                types[name] = POINTERS[value.dtype]
            else:
                types[name] = "fp32" if isinstance(value, float) else "i32"
        return types

    def aligned(self) -> list[str]:
        """Return the arguments that are multiples of 16: pointers to tensors, and some integers."""
        types = self.types()
        return [
            name
            for name, kind in types.items()
            if kind.startswith("*") or (kind == "i32" and self.arguments[name] % 16 == 0)
        ]

    def specialisation(self) -> Hashable:
        """Return a key that is equal for launches of the same machine code."""
        return (
            self.kernel,
            tuple(self.types().items()),
            tuple(self.aligned()),
            tuple(self.constants.items()),
            self.warps,
            self.arguments.get("num_stages", STAGES),
        )

    def compile(self, capability: int) -> Any:
        """Compile for a GPU of compute capability `capability` (80, 90); returns triton's `asm` and `metadata`."""
        names = self.kernel.arg_names
        source = ASTSource(
            fn=self.kernel,
            signature=self.types(),
            constexprs={(names.index(name),): value for name, value in self.constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned()},
        )
        options = {"num_warps": self.warps, "num_stages": self.arguments.get("num_stages", STAGES)}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    def usage(self, capability: int) -> Usage:
        """Compile, and return the resources of a program."""
        compiled = self.compile(capability)
        text = cuobjdump(compiled, "-res-usage")
        match = re.search(r"REG:(\d+) STACK:(\d+)", text)
        assert match, text
        return Usage(int(match[1]), int(match[2]), compiled.metadata.shared, self.warps)


def cuobjdump(compiled: Any, option: str) -> str:
    """Return what `cuobjdump` prints for the machine code."""
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        return subprocess.run([str(CUOBJDUMP), option, str(cubin)], capture_output=True, text=True, check=True).stdout
