"""Print whether the kernels can be trusted here.

    python -m transxnet.check [--precision bf16]

Each operator runs forward and backward on the kernels and in plain PyTorch, and is compared with plain PyTorch in fp64.
On a GPU it is also timed. The command needs a GPU of compute capability 8.0 or more; TRITON_INTERPRET=1 runs the
kernels in triton's interpreter instead, in fp32 or fp16, without timing. It exits with 1 if an operator is left to
PyTorch.
"""

import argparse
import os
import sys

PRECISIONS = ("fp32", "bf16", "fp16")


def main() -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m transxnet.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of the activations; default: bf16, in triton's interpreter fp32"
    )
    options = parser.parse_args()
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if interprets and options.precision == "bf16":
        parser.error("--precision bf16: triton's interpreter does not multiply bf16 matrices; choose fp32 or fp16")
    precision = options.precision or ("fp32" if interprets else "bf16")
    import torch

    from transxnet.backend import use_triton
    from transxnet.check.proof import prove

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        use_triton("triton", torch.empty(0, dtype=dtype, device=device))
    except ValueError:
        print(
            f"the kernels do not run on {device}: they need triton and a GPU of compute capability 8.0 or more. "
            "Plain PyTorch is used here. TRITON_INTERPRET=1 checks their values without a GPU, in minutes",
            file=sys.stderr,
        )
        return 2
    name = torch.cuda.get_device_name() if device.type == "cuda" else "triton's interpreter"
    print(f"{name}, torch {torch.__version__}, {precision}: errors relative to fp64", flush=True)
    verdicts = prove(device, dtype, report=lambda verdict: print(verdict.line(), flush=True))
    failed = [verdict for verdict in verdicts if verdict.problem]
    print(f"{len(failed)} of {len(verdicts)} operators are left to PyTorch")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
