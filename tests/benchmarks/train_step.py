"""Time one training step of TransXNet on a GPU with every backend, and every operator against its own bound.

    python -m tests.benchmarks.train_step [--models transxnet_t ...] [--batch 128] [--size 224] [--steps 20]

For each variant it times the reference eager and compiled, the kernels, and the kernels under CUDA graphs (the code of
`--train.cuda-graphs`, on flat parameters). It prints images per second, milliseconds, peak memory, launches, and the
share of the byte bound that is reached. Then it times each operator's forward and backward on the shapes of the stages,
and compares with the time that its tensors' bytes take at the card's copy speed, which is measured first. A step is
forward, backward and a fused AdamW step, in bf16 autocast with fp32 weights.

Without a GPU it prints what can be counted: launches and bytes of both backends, the times those bytes take at 4.3
TB/s, and the memory that the forward saves for the backward. These are bounds, not measurements. It needs torch and
triton only.
"""

import argparse
from typing import Any

H200_COPY = 4.3e12
MODELS = ("transxnet_t", "transxnet_s", "transxnet_b")


def main() -> None:
    """Measure, or count if there is no GPU, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=(*MODELS, "transxnet_n"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--no-compile", action="store_true", help="skip the compiled reference, which takes minutes for each model"
    )
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(f"No CUDA device: nothing is timed. Bounds are computed from bytes at {H200_COPY / 1e12:.1f} TB/s.")
        for name in options.models:
            print_counts(name, options, H200_COPY)
        return
    from tests.benchmarks.train_step_cuda import copy_speed, print_operators, print_steps

    bandwidth = copy_speed()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies at {bandwidth / 1e12:.2f} TB/s")
    for name in options.models:
        bound = print_counts(name, options, bandwidth)
        print_steps(name, options, bound)
        print_operators(name, options.batch, options.size, bandwidth)


def print_counts(name: str, options: Any, bandwidth: float) -> float:
    """Print launches and bytes of both backends, and return the kernels' byte bound in seconds."""
    from tests.benchmarks.traffic import count_step

    batch, size = options.batch, options.size
    print(f"\n{name}, batch {batch}, {size} px, bf16: counted for one forward and backward")
    seconds = 0.0
    for backend in ("reference", "triton"):
        traffic = count_step(name, backend, batch=batch, size=size)
        launches, moved = traffic.launches.total(), traffic.moved.total()
        seconds = moved / bandwidth
        print(
            f"  {backend:10s} launches {traffic.forward_launches} + {launches - traffic.forward_launches}, "
            f"{moved / 1e9:.1f} GB, bound {seconds * 1e3:.2f} ms, {batch / seconds:,.0f} images/s, "
            f"{traffic.saved / 1e9:.2f} GB saved for the backward"
        )
        for operator, count in traffic.moved.most_common(12):
            print(
                f"    {operator:32s} {traffic.launches[operator]:5d} launches {count / 1e9:7.2f} GB "
                f"{count / bandwidth * 1e3:6.2f} ms"
            )
    return seconds


if __name__ == "__main__":
    main()
