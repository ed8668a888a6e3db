"""Memory and time of OSRA's attention in bounded memory against attention with all probabilities at once, on a CPU.

    python -m tests.benchmarks.attention [--model transxnet_t] [--size 512] [--batch 2] [--rounds 5]

First it counts, on meta tensors, the bytes that autograd keeps for all attentions of the model at 800 x 1344 (batch 2)
and at `--size`, each storage once. Then it times forward and backward in either form, by the clock and by the process's
CPU time: all attentions, those of each stage, and the whole network. The two forms take turns within one run.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

import transxnet
from transxnet import attention as attentions
from transxnet import layers


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """Write the position bias out, and keep all probabilities, as this package did before."""

    def stage_bias(table: Tensor, queries: int, keys: int) -> Tensor:
        if table.shape[2:] == (queries, keys):
            return table.clone()
        return F.interpolate(table, size=(queries, keys), mode="bicubic", align_corners=False)

    with mock.patch.object(layers, "stage_bias", stage_bias), mock.patch.object(attentions, "FEW_KEYS", 10**9):
        yield


def kept_bytes(name: str, height: int, width: int, batch: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes that the attentions of the variant `name` keep for the backward, at a size in pixels."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
        alive.append(storage)
        return tensor

    alive: list[object] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.device("meta"):
        alive.extend(attend(inputs(name, height, width, batch, dtype)))
    return sum(seen.values())


def inputs(name: str, height: int, width: int, batch: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Return, for each stage of the variant `name`, its table, and queries, keys and values of each block."""
    config = transxnet.config_for(name)
    height, width = -(-height // 4), -(-width // 4)
    found = []
    for stage, (queries, keys) in enumerate(config.grids()):
        ratio, channels = config.sr_ratios[stage], config.dims[stage] // 2
        tensors = [torch.randn(1, config.num_heads[stage], queries**2, keys**2, requires_grad=True)]
        for _ in range(config.depths[stage]):
            reduced = -(-height // ratio), -(-width // ratio)
            tensors.append(torch.randn(batch, channels, height, width, dtype=dtype, requires_grad=True))
            tensors.append(torch.randn(batch, 2 * channels, *reduced, dtype=dtype, requires_grad=True))
        found.append(tensors)
        height, width = -(-height // 2), -(-width // 2)
    return found


def attend(stages: list[list[Tensor]]) -> list[Tensor]:
    """Return the outputs of all attentions of `inputs`."""
    found = []
    for table, *blocks in stages:
        bias = layers.stage_bias(table, blocks[0].shape[2:].numel(), blocks[1].shape[2:].numel())
        found += [attentions.attention(q, kv, bias) for q, kv in zip(blocks[::2], blocks[1::2], strict=True)]
    return found


def compare(name: str, step: Callable[[], object], rounds: int) -> None:
    """Print the seconds of `step` in both forms, which take turns, and the ratio of each round's pair."""
    forms = {"at once": all_at_once, "bounded": contextlib.nullcontext}
    times: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
    for repeat in range(rounds + 1):
        for form, enter in forms.items():
            clock, cpu = time.perf_counter(), time.process_time()
            with enter():
                step()
            if repeat:
                times[form].append((time.perf_counter() - clock, time.process_time() - cpu))
    for index, kind in enumerate(("clock", "CPU")):
        before, after = ([pair[index] for pair in times[form]] for form in forms)
        ratios = sorted(a / b for a, b in zip(before, after, strict=True))
        print(
            f"  {name:15s} {kind:5s}  fastest {min(before):6.3f} s at once, {min(after):6.3f} s bounded; at once / "
            f"bounded: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}",
            flush=True,
        )


def main() -> None:
    """Count, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transxnet_t")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(f"{options.model}, fp32: GB that all attentions keep for the backward")
    for height, width, batch in ((800, 1344, 2), (options.size, options.size, options.batch)):
        with all_at_once():
            before = kept_bytes(options.model, height, width, batch)
        after = kept_bytes(options.model, height, width, batch)
        print(f"  {height} x {width}, batch {batch}: {before / 1e9:.2f} at once, {after / 1e9:.2f} in bounded memory")

    torch.manual_seed(0)
    print(
        f"{options.model}, batch {options.batch}, {options.size} px, "
        f"{options.threads} threads, fp32, forward and backward"
    )
    stages = inputs(options.model, options.size, options.size, options.batch, torch.float32)
    compare(
        "all attentions",
        lambda: torch.autograd.backward([out.square().mean() for out in attend(stages)]),
        options.rounds,
    )
    for stage, tensors in enumerate(stages, start=1):
        compare(
            f"  of stage {stage}",
            lambda own=tensors: torch.autograd.backward([out.square().mean() for out in attend([own])]),
            options.rounds,
        )
    network = transxnet.build(options.model, drop_path_rate=0.0, backend="reference").train()
    images = torch.randn(options.batch, 3, options.size, options.size)
    compare("whole network", lambda: network(images).square().mean().backward(), options.rounds)


if __name__ == "__main__":
    main()
