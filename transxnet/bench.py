"""Time TransXNet on this machine: parameters, multiplications, images per second and memory, a line a variant.

    python -m transxnet.bench [--variants t s] [--sizes 224 384] [--batch 8] [--peers] [--json FILE]

Each line is one variant at one size, backend and precision: forward in evaluation, and forward with backward in
training. Networks of one size take turns within a round, so that other load on the machine affects all; the figure is
the fastest of the rounds. With `--peers` timm's ConvNeXt-T and Swin-T are timed beside them. On a GPU the memory is the
peak of a training step; on a CPU it is what the forward keeps for the backward.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VARIANTS = ("n", "t", "s", "b")
BACKENDS = ("auto", "reference", "triton")
PRECISIONS = ("fp32", "bf16", "fp16")
PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
HEADER = (
    f"{'network':30s} {'px':>5s} {'backend':9s} {'precision':9s} {'M param':>8s} {'GMAC':>7s} {'forward':>9s} "
    f"{'fwd+bwd':>9s} {'GB':>7s}"
)


@dataclass
class Measurement:
    """One network at one size: times are added round by round."""

    network: str
    size: int
    backend: str
    precision: str
    batch: int
    device: str
    parameters: int = 0
    gmac: float = 0.0
    memory_bytes: int = 0
    forward_s: list[float] = field(default_factory=list)
    training_s: list[float] = field(default_factory=list)

    def rates(self) -> tuple[float, float]:
        """Return images per second of the forward, and of forward and backward."""
        return self.batch / min(self.forward_s), self.batch / min(self.training_s)

    def line(self) -> str:
        """Return the measurement as a line under `HEADER`."""
        forward, training = self.rates()
        return (
            f"{self.network:30s} {self.size:5d} {self.backend:9s} {self.precision:9s} {self.parameters / 1e6:8.2f} "
            f"{self.gmac:7.3f} {forward:9.2f} {training:9.2f} {self.memory_bytes / 1e9:7.3f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m transxnet.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["t", "s", "b"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224], help="side of the images in pixels")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["auto"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--batch", type=int, help="images at a time; default: 128 on a GPU, 4 on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU if there is one")
    parser.add_argument("--peers", action="store_true", help="time timm's ConvNeXt-T and Swin-T too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements to this file, too")
    options = parser.parse_args()
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is available to torch here; leave it out to use the CPU")
    if min(options.sizes) < 1 or options.rounds < 1 or (options.batch is not None and options.batch < 2):
        parser.error("--sizes and --rounds need positive numbers, --batch at least 2 (IDConv's norm needs two samples)")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.absolute().parent}; make it first")
    if options.peers and importlib.util.find_spec("timm") is None:
        parser.error("--peers: timm is not installed here; install it, or leave --peers out")
    batch = options.batch or (128 if device == "cuda" else 4)
    precisions = options.precisions or (["bf16"] if device == "cuda" else ["fp32"])
    if problem := _kernels_problem(options.backends, precisions, device):
        parser.error(f"--backends triton: {problem}")
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, batch {batch}; images per second, fastest of {options.rounds} rounds")
    print(HEADER, flush=True)
    found = []
    for size in options.sizes:
        for precision in precisions:
            networks = list(_networks(options.variants, options.backends, size, peers=options.peers))
            try:
                measured = measure(networks, size, precision, batch, device, options.rounds)
            except torch.OutOfMemoryError:
                parser.exit(1, f"{device} has too little memory at {size} px: choose a --batch below {batch}\n")
            for measurement in measured:
                print(measurement.line(), flush=True)
            found += measured
            if options.json is not None:
                options.json.write_text(
                    json.dumps([asdict(measurement) for measurement in found], indent=1) + "\n", encoding="utf-8"
                )


def _kernels_problem(backends: Sequence[str], precisions: Sequence[str], device: str) -> str:
    """Return why the kernels do not run here, if they are asked for; empty if they do."""
    import torch

    from transxnet.backend import use_triton

    try:
        for precision in precisions if "triton" in backends else ():
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
            use_triton("triton", torch.empty(0, dtype=dtype, device=device))
    except ValueError as problem:
        return str(problem)
    return ""


def _networks(
    variants: Sequence[str], backends: Sequence[str], size: int, *, peers: bool
) -> Iterator[tuple[str, str, Any]]:
    """Yield the name, the backend and the network of each line."""
    import transxnet

    for variant in variants:
        for backend in backends:
            name = f"transxnet_{variant}"
            yield name, backend, transxnet.build(name, image_size=size, backend=backend, drop_path_rate=0.0)
    if peers:
        # timm is needed for nothing else in this package.
        timm = importlib.import_module("timm")
        for name in PEERS:
            settings = {"img_size": size} if name.startswith("swin") else {}
            yield name, "timm", timm.create_model(name, **settings)


def measure(
    networks: Sequence[tuple[str, str, Any]], size: int, precision: str, batch: int, device: str, rounds: int
) -> list[Measurement]:
    """Return a measurement of each network (name, backend, module) at `size` pixels."""
    import torch

    import transxnet

    images = torch.randn(batch, 3, size, size, device=device)
    found = []
    for name, backend, network in networks:
        measurement = Measurement(name, size, backend, precision, batch, device)
        measurement.parameters = sum(parameter.numel() for parameter in network.parameters())
        # Kernels cannot be counted: plain PyTorch computes the same.
        counted = network if backend == "timm" else transxnet.build(name, image_size=size, backend="reference")
        measurement.gmac = count_gmac(counted, size)
        network.to(device)
        measurement.memory_bytes = _memory(network, images, precision)
        found.append(measurement)
    for number in range(1, rounds + 1):
        print(f"{size} px, {precision}: round {number} of {rounds}", file=sys.stderr, flush=True)
        for measurement, (_, _, network) in zip(found, networks, strict=True):
            measurement.forward_s.append(_time(network, images, precision, training=False))
            measurement.training_s.append(_time(network, images, precision, training=True))
    return found


def count_gmac(network: Any, size: int) -> float:
    """Return the 1e9 multiplications with an addition of convolutions and matrix products for one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.randn(1, 3, size, size)
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() / 2e9


def _run(network: Any, images: Any, precision: str, *, training: bool) -> None:
    import torch

    kind, low = images.device.type, torch.float16 if precision == "fp16" else torch.bfloat16
    network.train(training)
    with torch.autocast(kind, dtype=low, enabled=precision != "fp32"), torch.set_grad_enabled(training):
        out = network(images)
    if training:
        network.zero_grad(set_to_none=True)
        out.float().sum().backward()


def _time(network: Any, images: Any, precision: str, *, training: bool) -> float:
    """Return the seconds of one pass over `images`."""
    import torch

    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    _run(network, images, precision, training=training)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _memory(network: Any, images: Any, precision: str) -> int:
    """Warm up, and return the bytes of a training step: its peak on a GPU, what the forward keeps on a CPU."""
    import torch

    if images.is_cuda:
        _run(network, images, precision, training=True)
        torch.cuda.reset_peak_memory_stats()
        _run(network, images, precision, training=True)
        return torch.cuda.max_memory_allocated()
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _run(network, images, precision, training=True)
    return sum(kept.values())


if __name__ == "__main__":
    main()
