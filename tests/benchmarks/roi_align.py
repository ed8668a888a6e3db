"""Time RoIAlign with its gradient: the deterministic, separable form against torchvision's operator.

    python -m tests.benchmarks.roi_align [--height 800] [--width 1344] [--regions 512] [--size 7] [--rounds 7]

The regions of one image are pooled from the four levels of its pyramid, as Mask R-CNN's box head (7) and mask head (14)
do. On a CUDA device torchvision's gradient is summed by atomics; on a CPU it is serial. Both forms alternate within one
run, and the result is the ratio of their fastest rounds.
"""

import argparse
import time

import torch
from torch import Tensor
from torchvision import ops

from transxnet.dense.mask_rcnn import POOLED
from transxnet.dense.roi import region_levels, roi_align_separable


def operator(x: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Return torchvision's RoIAlign as the networks call it."""
    return ops.roi_align(x, rois, size, scale, sampling_ratio=0, aligned=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"height": 800, "width": 1344, "regions": 512, "size": 7, "rounds": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (options.height, options.width)
    levels = [torch.randn(1, 256, shape[0] // s, shape[1] // s, device=device, requires_grad=True) for s in POOLED]
    # Sides are log-uniform from 16 px to the image's, as objects are.
    sides = 16 * (torch.tensor(shape) / 16) ** torch.rand(options.regions, 2)
    corners = torch.rand(options.regions, 2) * (torch.tensor(shape) - sides)
    boxes = torch.cat((corners.flip(1), (corners + sides).flip(1)), dim=1).to(device)
    rois = torch.cat((boxes.new_zeros(len(boxes), 1), boxes), dim=1)
    level_of = region_levels(boxes, len(levels))

    times: dict[str, list[float]] = {"torchvision": [], "separable": []}
    for _ in range(options.rounds + 1):
        for name, form in (("torchvision", operator), ("separable", roi_align_separable)):
            start = _clock(device)
            for level, (x, stride) in enumerate(zip(levels, POOLED, strict=True)):
                out = form(x, rois[level_of == level], options.size, 1 / stride)
                torch.autograd.grad(out.sum(), x)
            times[name].append(_clock(device) - start)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}: {options.regions} regions to {options.size} x {options.size}, {shape[0]} x {shape[1]} px, fp32")
    for name, seconds in times.items():
        print(f"  {name:12s} fastest {1000 * min(seconds[1:]):8.2f} ms")
    print(f"  separable / torchvision {min(times['separable'][1:]) / min(times['torchvision'][1:]):.2f}")


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
