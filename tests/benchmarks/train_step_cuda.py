"""Time the training step on a GPU with every backend, and each operator alone; used by `train_step`."""

import argparse
import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

import transxnet
from pipeline.config.schema import OptimizerConfig
from pipeline.engine.cuda_graphs import Graphed
from pipeline.engine.flat import FlatModel
from pipeline.engine.loss_model import LossModel
from pipeline.engine.optimizer import parameter_groups
from pipeline.tasks import find_task


def print_steps(name: str, options: argparse.Namespace, bound: float) -> None:
    """Time the training step with every backend and print a line for each."""
    ways = [
        ("reference eager", "reference", "eager"),
        ("kernels", "triton", "eager"),
        ("kernels + graphs", "triton", "graph"),
    ]
    if not options.no_compile:
        ways.insert(1, ("reference compiled", "reference", "compile"))
    print(f"  {'':20s} {'images/s':>9s} {'ms':>8s} {'peak GiB':>9s} {'launches':>9s} {'of bound':>9s}")
    for label, backend, how in ways:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = build_step(name, backend, how, options.batch, options.size)
            milliseconds = time_cuda(step, options.steps)
            launches = count_cuda_launches(step)
        except Exception as error:  # A failure is reported, and the others still run.
            print(f"  {label:20s} failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
            continue
        peak = torch.cuda.max_memory_allocated() / 2**30
        rate = options.batch / milliseconds * 1e3
        share = bound * 1e5 / milliseconds
        print(f"  {label:20s} {rate:9,.0f} {milliseconds:8.2f} {peak:9.2f} {launches:9d} {share:8.0f}%")
        del step


def build_step(name: str, backend: str, how: str, batch: int, size: int) -> Callable[[], None]:
    """Return a training step on fixed data; `how` is eager, compile or graph (on flat parameters, as in training)."""
    torch.manual_seed(0)
    model: nn.Module = transxnet.build(name, image_size=size, backend=backend)
    if how == "graph":
        groups = parameter_groups(model, OptimizerConfig())
        model = FlatModel(model, {name: list(group.names) for name, group in groups.items()})
    model = model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, 3, size, size, device="cuda")
    targets = torch.softmax(torch.randn(batch, 1000, device="cuda"), dim=1)
    if how == "compile":
        model.compile()
    loss_of = LossModel(model, find_task("classification").losses)
    if how == "graph":
        loss_of = Graphed(loss_of)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(images, targets)
        loss.backward()
        optimizer.step()

    return step


def print_operators(name: str, batch: int, size: int, bandwidth: float) -> None:
    """Time the forward and backward of each operator, reference and kernel, and compare with the bytes it moves."""
    config = transxnet.config_for(name, image_size=size)
    print(f"  {'operator, forward + backward':34s} {'bound ms':>9s} {'reference':>10s} {'kernel':>8s} {'of bound':>9s}")
    for stage, ((side, key_side), dim) in enumerate(zip(config.grids(), config.dims, strict=True)):
        for label, passes, operators in _operators(config, stage, batch, side, key_side, dim):
            bound = passes / bandwidth * 1e3
            try:
                reference, kernel = (time_cuda(operator, 10) for operator in operators)
            except Exception as error:  # A failure is reported, and the others still run.
                print(
                    f"  stage {stage + 1} {label:26s} failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
                )
                continue
            line = f"{bound:9.3f} {reference:10.3f} {kernel:8.3f} {bound / kernel * 100:8.0f}%"
            print(f"  stage {stage + 1} {label:26s} {line}")


def _operators(
    config: transxnet.TransXNetConfig, stage: int, batch: int, side: int, key_side: int, dim: int
) -> list[tuple[str, float, tuple[Callable[[], None], Callable[[], None]]]]:
    """Return (name, least bytes of forward and backward, (reference, kernel)) of a block's operators."""
    from transxnet.kernels import group_norm, residual
    from transxnet.kernels.common import depthwise_conv, linear
    from transxnet.kernels.idconv import dynamic_conv
    from transxnet.kernels.msffn import multiscale
    from transxnet.kernels.osra import attention, spatial_reduction

    def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)

    def both(reference: Callable, kernel: Callable, *inputs: object) -> tuple[Callable[[], None], Callable[[], None]]:
        def run(operator: Callable) -> Callable[[], None]:
            def call() -> None:
                out = operator(*inputs)
                while isinstance(out, tuple):  # A kernel may return more than its reference.
                    out = out[0]
                out.backward(torch.ones_like(out))

            return call

        return run(reference), run(kernel)

    hidden, half, groups = dim * config.mlp_ratios[stage], dim // 2, config.num_groups[stage]
    x, h = leaf(batch, dim, side, side), leaf(batch, hidden, side, side)
    x_bytes, h_bytes = x.numel() * 2.0, h.numel() * 2.0
    norm_h, norm_x = nn.BatchNorm2d(hidden).cuda(), nn.BatchNorm2d(dim).cuda()
    group = nn.GroupNorm(1, dim).cuda()
    quarter = hidden // 4
    windows = (hidden - 3 * quarter, quarter, quarter, quarter)
    weights = [leaf(window, 1, k, k) for window, k in zip(windows, (1, 3, 5, 7), strict=True)]
    biases = [leaf(window) for window in windows]
    scale, offset = leaf(dim, 1, 1, 1, dtype=torch.float32), leaf(dim, dtype=torch.float32)
    factor = torch.ones(batch, 1, 1, 1, device="cuda", dtype=torch.bfloat16)
    found = [
        ("expand, norm, multi-scale", 11 * h_bytes + 3 * x_bytes, both(
            multiscale.expand_norm_multiscale_reference, multiscale.expand_norm_multiscale, x,
            leaf(hidden, dim, 1, 1), norm_h, weights, biases)),
        ("GELU, norm, contract", 5 * h_bytes + 3 * x_bytes, both(
            linear.gelu_norm_linear_reference, linear.gelu_norm_linear, h, norm_h, leaf(dim, hidden, 1, 1), None)),
        ("GroupNorm", 9 * x_bytes, both(
            lambda x: nn.functional.group_norm(x, 1, group.weight.bfloat16(), group.bias.bfloat16()),
            lambda x: group_norm.fork_group_norm(x, group, 1, x.dtype), x)),
        ("norm + scale + residual", 9 * x_bytes, both(
            residual.scaled_residual_reference, residual.scaled_residual, x, leaf(*x.shape), norm_x, scale, offset,
            factor, None)),
        ("positional depthwise 7x7", 5 * x_bytes, both(
            depthwise_conv.depthwise_conv_reference, depthwise_conv.depthwise_conv, x, leaf(dim, 1, 7, 7), leaf(dim))),
        ("IDConv", 4.5 * x_bytes, both(
            dynamic_conv.dynamic_conv_reference, dynamic_conv.dynamic_conv, leaf(batch, half, side, side),
            leaf(half // 4, half, 1, 1), nn.BatchNorm2d(half // 4).cuda(), leaf(groups * half, half // 4, 1, 1),
            leaf(groups * half), leaf(groups, half, 7, 7), leaf(groups, half))),
    ]  # fmt: skip
    if (ratio := config.sr_ratios[stage]) > 1:
        found.append(
            ("OSRA's reduction", 2.5 * x_bytes, both(
                spatial_reduction.fork_spatial_reduction_reference, spatial_reduction.fork_spatial_reduction,
                leaf(batch, half, side, side), ratio, leaf(half, 1, ratio + 3, ratio + 3), nn.BatchNorm2d(half).cuda(),
                leaf(half, 1, 1, 1), nn.BatchNorm2d(half).cuda(), leaf(half, 1, 3, 3), leaf(half)))
        )  # fmt: skip
    bias = leaf(1, config.num_heads[stage], side**2, key_side**2, dtype=torch.float32)
    found.append(
        ("attention", 4.5 * x_bytes, both(
            attention.attention_reference, attention.attention, leaf(batch, half, side, side),
            leaf(batch, dim, key_side, key_side), bias))
    )  # fmt: skip
    return found


def time_cuda(step: Callable[[], None], repeats: int) -> float:
    """Return the median milliseconds of `step`, after three warm-up runs."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def count_cuda_launches(step: Callable[[], None]) -> int:
    """Return the number of kernels, copies and graph replays that the host launches for one `step`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    launches = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")
    return sum(event.count for event in recorded.key_averages() if event.key.startswith(launches))


def copy_speed() -> float:
    """Return the bytes per second of a device-to-device copy, reads plus writes."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_cuda(lambda: target.copy_(source), 10) / 1e3)
