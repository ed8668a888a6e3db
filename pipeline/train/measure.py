"""What a rank measures in the preflight of an attempt: its device, its node, and the network to the other ranks."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs import JobError, node_name
from jobs.snapshot import digest
from pipeline.common.errors import one_line
from pipeline.common.packages import PACKAGES
from pipeline.common.processes import PROJECT_ROOT
from pipeline.config.schema import TrainConfig
from pipeline.config.serialise import to_dict
from pipeline.engine.distributed import World, gather_objects, sum_over_ranks
from pipeline.run.preflight import Measured

PRODUCTS_S, COPIES_S = 0.2, 0.1
"""Seconds for which products and copies are repeated."""
TRIES = 5
"""Greatest number of exchanges and of sums, of which the median counts."""
TRIES_S = {"cpu": 0.4, "cuda": 2.0}
"""Seconds after which there is no further try, by the kind of device: with a slow node each of them takes long."""


def ranks_of_node() -> int:
    """Return the number of ranks on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def measure(run_dir: Path, config: TrainConfig, world: World) -> Measured:
    """Measure this rank, its node, and the network. Collective.

    What fails on this rank alone is told as its `problem`, and the other ranks do not wait for it.

    Args:
        run_dir: of the run, as this rank sees it.
        config: of the training.
        world: this process among the ranks.
    """
    tries = _Attempted()
    mine = Measured(
        host=node_name(),
        versions=_versions(),
        code=tries("reading the code", lambda: digest(PROJECT_ROOT, PACKAGES)) or "",
        run=hashlib.sha256(json.dumps(to_dict(config)).encode()).hexdigest()[:12],
        shards=_shards_seen(config),
        fsync_s=tries("writing to the run directory", lambda: _fsync_s(run_dir, world.rank)),
        free_gb=tries("looking at the temporary folder", _free_gb),
    )
    mine = _with_times(mine, world, tries)
    return mine if mine.reduce_s is None else replace(mine, clock_s=_clock_s(world))


def measure_again(mine: Measured, world: World) -> Measured:
    """Measure the times of a rank anew; what it has seen stays as it was. Collective."""
    return _with_times(mine, world, _Attempted())


class _Attempted:
    """Keeps what fails on this rank, since the other ranks would wait for one that raises."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, what: str, action: Callable[[], Any]) -> Any:
        """Return what the action does; None if it fails."""
        try:
            return action()
        except (OSError, RuntimeError, ValueError, JobError) as error:
            self.problems.append(f"{what} failed: {one_line(error)}")
            return None


def _with_times(mine: Measured, world: World, tries: _Attempted) -> Measured:
    """Add the times of this rank's device, and of the network unless something has failed on a rank. Collective."""
    mine = replace(
        mine,
        product_s=tries("a matrix product", lambda: _product_s(world.device)),
        copy_s=tries("a copy in memory", lambda: _copy_s(world.device)),
    )
    mine = replace(mine, problem="; ".join(tries.problems))
    if any(gather_objects(bool(tries.problems))):
        # A rank whose device fails would keep the others waiting.
        return replace(mine, partners=(), pair_s=(), reduce_s=None)
    return _with_network(mine, world)


def _with_network(mine: Measured, world: World) -> Measured:
    """Add the times of the network. Collective."""
    elements = 2**23 if world.device.type == "cuda" else 2**18
    # The first collective of all ranks, before those of pairs: NCCL makes its connections then.
    reduce_s, sum_right = _sum_over_all(world, elements)
    partners, pair_s, pairs_right = _exchanges(world, elements)
    return replace(
        mine,
        partners=partners,
        pair_s=pair_s,
        reduce_s=reduce_s,
        sums_right=mine.sums_right and pairs_right and sum_right,
    )


def _versions() -> str:
    from importlib.metadata import version

    return f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}, DeepSpeed " + (
        version("deepspeed")
    )


def _digest_of(path: Path) -> str:
    """Return the start of the SHA-256 of a file; empty if this node does not see it."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return ""


def _shards_seen(config: TrainConfig) -> str:
    """Return a digest of the newest file of the training shards, the manifest, which is published last."""
    if "://" in config.data.shards:
        return ""
    files = Path(config.data.shards).glob(f"*-{config.data.train_split}.json")
    return " ".join(_digest_of(path) for path in sorted(files))


def _repeated(action: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the mean time of an action that is repeated for a while, after one run that does not count."""
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        action()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / count


def _product_s(device: torch.device) -> float:
    """Return the seconds of a matrix product: of 4096 x 4096 bf16 on a GPU, of 256 x 256 fp32 on a CPU."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    # Without torch's random numbers, whose state belongs to the training.
    matrix = torch.linspace(-1, 1, size * size, dtype=torch.float32, device=device).reshape(size, size).to(dtype)
    return _repeated(lambda: matrix @ matrix, device, PRODUCTS_S)


def _copy_s(device: torch.device) -> float:
    """Return the seconds of a copy in the device's memory: of 256 MB on a GPU, of 16 MB on a CPU."""
    source = torch.zeros(2**26 if device.type == "cuda" else 2**22, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return _repeated(lambda: target.copy_(source), device, COPIES_S)


def _fsync_s(run_dir: Path, rank: int) -> float:
    """Return the seconds of writing a small file durably to the run directory."""
    path = run_dir / f".preflight-{rank}"
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(bytes(1024))
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - began
    finally:
        # What has failed is the write.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _free_gb() -> float:
    return shutil.disk_usage(tempfile.gettempdir()).free / 1e9


def _tries(world: World) -> Iterator[None]:
    """Let all ranks begin each of several tries together, at least one, as many as there is time for by rank 0's clock.

    Collective, through gloo.
    """
    began = time.monotonic()
    for number in range(TRIES):
        is_over = world.is_main and number > 0 and time.monotonic() - began > TRIES_S[world.device.type]
        if sum_over_ranks([float(is_over)])[0]:
            return
        yield


def _clock_s(world: World) -> float:
    """Return the clock of this node minus that of rank 0, in seconds, as far as a collective tells it. Collective."""
    offsets = []
    for _ in _tries(world):
        times = gather_objects(time.time())
        offsets.append(float(str(times[world.rank])) - float(str(times[0])))
    return statistics.median(offsets)


def _filled(world: World, elements: int, rank: int) -> torch.Tensor:
    """Return numbers fp32 [elements] that depend on a rank, and whose sums over ranks are exact."""
    return torch.arange(elements, device=world.device, dtype=torch.float32).remainder_(1024).add_(rank % 1024)


def _timed(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def partner_of(number: int, count: int, shift: int) -> int | None:
    """Return the partner of one of `count` nodes in the first or second round (`shift` 0 or 1); None: it has none.

    In the second round all are paired otherwise than in the first one, if there are more than two.
    """
    if count % 2:
        left_out = count - 1 if shift == 0 else 0
        return None if number == left_out else ((number - shift) ^ 1) + shift
    return (((number - shift) % count ^ 1) + shift) % count


def neighbour_of(rank: int, nodes: Sequence[str], shift: int) -> int | None:
    """Return the rank with which a rank exchanges numbers: the one in its place on the next or the previous node.

    On a single node it is the next or the previous rank. All ranks find the same pairs, also where nodes have different
    numbers of ranks; one whose partner's node has fewer of them has none, as in `partner_of`.

    Args:
        rank: the rank.
        nodes: node of each rank.
        shift: 0 or 1, the first or the second round.
    """
    members: dict[str, list[int]] = {}
    for each, node in enumerate(nodes):
        members.setdefault(node, []).append(each)
    groups = list(members.values()) if len(members) > 1 else [[each] for each in range(len(nodes))]
    [number] = [number for number, group in enumerate(groups) if rank in group]
    other, place = partner_of(number, len(groups), shift), groups[number].index(rank)
    return None if other is None or place >= len(groups[other]) else groups[other][place]


def _exchanges(world: World, elements: int) -> tuple[tuple[int | None, ...], tuple[float | None, ...], bool]:
    """Exchange numbers with the previous and the next node, or rank on a single node.

    Both ranks send theirs and add what they receive, which is the sum over the pair. Collective.

    Returns:
        The two partners, the time of the exchange with each, and whether the numbers were right. A partner is None
        where there is none.
    """
    nodes = [str(node) for node in gather_objects(os.environ.get("GROUP_RANK") or node_name())]
    partners: list[int | None] = []
    times: list[float | None] = []
    is_right = True
    own = _filled(world, elements, world.rank)
    for shift in (0, 1):
        partner = neighbour_of(world.rank, nodes, shift)
        seconds = []
        for _ in _tries(world):
            if partner is not None:
                began = time.perf_counter()
                received = _exchange(own, partner)
                if world.device.type == "cuda":
                    torch.cuda.synchronize(world.device)
                seconds.append(time.perf_counter() - began)
                is_right &= bool(torch.equal(own + received, own + _filled(world, elements, partner)))
        partners.append(partner)
        times.append(statistics.median(seconds) if seconds else None)
    return tuple(partners), tuple(times), is_right


def _exchange(own: torch.Tensor, partner: int) -> torch.Tensor:
    """Send a tensor to another rank, and return the one that it sends at the same time."""
    received = torch.empty_like(own)
    operations = [dist.P2POp(dist.isend, own, partner), dist.P2POp(dist.irecv, received, partner)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


def _sum_over_all(world: World, elements: int) -> tuple[float, bool]:
    """Sum numbers over all ranks; return the seconds, and whether the sum is right. Collective."""
    seconds = []
    total = torch.empty(0)
    for _ in _tries(world):
        total = _filled(world, elements, world.rank)
        seconds.append(_timed(lambda total=total: dist.all_reduce(total), world.device))
    expected = world.size * _filled(world, elements, 0) + sum(rank % 1024 for rank in range(world.size))
    return statistics.median(seconds), bool(torch.equal(total, expected))
