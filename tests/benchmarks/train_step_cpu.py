"""Time one training step of TransXNet on the CPU: the reference backend against the published form.

    python -m tests.benchmarks.train_step_cpu [--model transxnet_t] [--batch 8] [--threads 2] [--rounds 7]

A step is forward, backward and a fused AdamW step. Both forms start from the same weights and alternate within one run,
so that other load on the machine affects both. The result is the ratio of their fastest rounds.
"""

import argparse
import time
from collections.abc import Callable

import torch

import transxnet
from tests.transxnet import straightforward
from transxnet import to_upstream


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transxnet_t")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = transxnet.build(options.model, drop_path_rate=0.0).train()
    state = {key: value.clone() for key, value in to_upstream(model.state_dict()).items()}
    weights = list(straightforward.trainable(state).values())
    for weight in weights:
        weight.requires_grad_()
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(1000, (options.batch,))

    published = _step(weights, lambda: straightforward.forward(state, model.config, images, training=True), labels)
    reference = _step(list(model.parameters()), lambda: model(images), labels)
    published(), reference()
    times: dict[str, list[float]] = {"published form": [], "reference backend": []}
    for _ in range(options.rounds):
        for name, step in (("published form", published), ("reference backend", reference)):
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    print(f"{options.model}, batch {options.batch}, {options.size} px, {options.threads} threads, fp32, one step")
    for name, seconds in times.items():
        print(f"  {name:18s} fastest {min(seconds):6.3f} s   median {sorted(seconds)[len(seconds) // 2]:6.3f} s")
    slow, fast = times.values()
    medians = [sorted(seconds)[len(seconds) // 2] for seconds in (slow, fast)]
    print(f"  ratio of the fastest rounds {min(slow) / min(fast):.2f}, of the medians {medians[0] / medians[1]:.2f}")


def _step(weights: list[torch.Tensor], logits: Callable[[], torch.Tensor], labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits(), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
