"""Measurements with 1, 2 and 4 processes on this machine beside the figures of `scaling`: `scaling --measure`."""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.scaling import allreduce_bytes, state_bytes
from tests.support import REPOSITORY

WORLD_SIZES = (1, 2, 4)
STEPS = 12
BATCH = 64
COUNT = 4_000_000
"""Floats of a measured all-reduce."""


def _loopback_bytes() -> int:
    """Bytes that all processes have sent over the loopback interface of this network namespace."""
    (line,) = (
        line
        for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("lo:")
    )
    return int(line.split()[9])


def _exchange(rank: int, world_size: int, port: int, count: int, rounds: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    values = torch.ones(count)
    for _ in range(rounds):
        distributed.all_reduce(values)
    distributed.barrier()
    distributed.destroy_process_group()


def sent_bytes(world_size: int, count: int = 4_000_000, rounds: int = 4) -> float:
    """Bytes that one rank sends in an all-reduce of `count` floats, counted on the loopback interface."""
    from jobs.environment import free_port

    context = multiprocessing.get_context("spawn")
    seen = []
    for times in (0, rounds):
        before, port = _loopback_bytes(), free_port()
        ranks = [
            context.Process(target=_exchange, args=(rank, world_size, port, count, times)) for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        seen.append(_loopback_bytes() - before)
    return (seen[1] - seen[0]) / rounds / world_size


def trained(world_size: int, folder: Path) -> dict[str, Any]:
    """Train the demo for a few steps on `world_size` single-threaded processes, and return times and sizes."""
    run_dir = folder / f"ranks{world_size}"
    command = [sys.executable, "-m", "pipeline.launch", "--recipe", "demo", "--run-dir", str(run_dir)]
    command += ["--tasks-per-node", str(world_size), "--train.steps", str(STEPS), "--train.audit-samples"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (run_dir / "attempts.jsonl").read_text().splitlines()]
    (attempt_log,) = (run_dir / "submitit").glob("*_attempts.jsonl")
    began = json.loads(attempt_log.read_text().splitlines()[0])["time"]
    files = (run_dir / "checkpoints" / f"step_{STEPS:08d}").glob("rank_*")
    return {
        "step_s": statistics.median(record["step_s"] for record in records[1:]),
        "start_s": records[0]["time"] - began,
        "save_s": next(event["seconds"] for event in events if event["event"] == "saved"),
        "bytes": [path.stat().st_size for path in files],
        "images": _images_of_ranks(run_dir, world_size),
    }


def _images_of_ranks(run_dir: Path, world_size: int) -> list[int]:
    """Images that each rank reads in a step."""
    from pipeline.data.audit import read_audit

    ranks = read_audit(run_dir)["rank"].to_pylist()
    return [ranks.count(rank) // STEPS for rank in range(world_size)]


def check() -> str:
    """A table in Markdown: measured values, and in parentheses those predicted from one process."""
    import transxnet

    network = transxnet.transxnet_n(num_classes=10, image_size=32)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    buffers = sum(tensor.numel() for tensor in network.buffers())
    lines = [
        "| processes | MB sent a rank in an all-reduce | images a rank and step | step ms | MB saved in all "
        "| of it the largest rank | save s | start s |",
        "|" + "---|" * 8,
    ]
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, Any] = {}
        for world_size in WORLD_SIZES:
            sent = sent_bytes(world_size, COUNT) / 1e6
            seen = trained(world_size, Path(folder))
            first = first or seen
            step_ms = 1e3 * first["step_s"] / min(world_size, cores)
            total, state = sum(seen["bytes"]), state_bytes(parameters, buffers, world_size)
            lines.append(
                f"| {world_size} | {sent:.2f} ({allreduce_bytes(COUNT, world_size) / 1e6:.2f}) "
                f"| {max(seen['images'])} ({BATCH // world_size}) | {1e3 * seen['step_s']:.0f} ({step_ms:.0f}) "
                f"| {total / 1e6:.2f} ({state / 1e6:.2f}) | {max(seen['bytes']) / total:.0%} ({1 / world_size:.0%}) "
                f"| {seen['save_s']:.2f} | {seen['start_s']:.1f} |"
            )
    return "\n".join(lines)
