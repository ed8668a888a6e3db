"""The preflight of an attempt: each rank, each node and the network between them are tried before the training begins.

It costs a second or two. A node that is broken or slow is found here, and not after hours.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jobs import exclude_nodes
from pipeline.common.atomic import write_json
from pipeline.common.errors import TrainingError, one_line
from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import World, broadcast_from_main, gather_objects
from pipeline.run.preflight import Finding, Measured, as_json, judge, report_path, table
from pipeline.run.recorder import Recorder
from pipeline.train.measure import measure, measure_again, ranks_of_node

REPEATS = 2
"""How often it is measured again where a rank seems slow: by chance it is not so most of the time."""
LONGEST_S = {"cpu": 3.5, "cuda": 15.0}
"""Seconds after which it is not measured again, by the kind of device; a round with a slow node takes 1.5 s and 5 s."""


def should_run(config: TrainConfig, world: World) -> bool:
    """Whether an attempt has a preflight: as configured, or by itself where several nodes or GPUs train. Collective.

    Rank 0 decides: nodes may have different numbers of ranks.
    """
    if config.preflight == "auto":
        has_several = world.size > 1 and (world.size > ranks_of_node() or world.device.type == "cuda")
        return bool(broadcast_from_main(has_several))
    return config.preflight == "on"


def preflight(run_dir: Path, config: TrainConfig, world: World, recorder: Recorder) -> bool:
    """Try the ranks, and log and keep what was found. Collective.

    Returns:
        Whether the attempt goes on; if not, it is to be started again without the nodes that were found.

    Raises:
        TrainingError: on every rank, if the ranks would not compute one training, or one of them cannot compute.
    """
    began = time.monotonic()
    mine = measure(run_dir, config, world)
    rounds = [_gathered(mine)]
    if any(finding.kind == "slow" for finding in judge(rounds[0], config.slow_factor)) and not _failed(rounds[0]):
        for _ in range(REPEATS):
            if broadcast_from_main(time.monotonic() - began > LONGEST_S[world.device.type]):
                break
            rounds.append(_gathered(measure_again(mine, world)))
    ranks = [_middle(rank) for rank in zip(*rounds, strict=True)]
    findings = judge(ranks, config.slow_factor)
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)
    seconds = time.monotonic() - began
    if world.is_main:
        _keep(run_dir, recorder, as_json(ranks, findings, seconds))
    recorder.event("preflight", seconds=round(seconds, 3), findings=[finding.describe() for finding in findings])
    recorder.log(f"preflight of {world.size} ranks in {seconds:.1f} s:\n  " + "\n  ".join(table(ranks, findings)))
    wrong = [finding for finding in findings if finding.kind == "wrong"]
    if wrong:
        raise TrainingError(
            f"preflight: {_all(wrong)}; this attempt trained nothing (--train.preflight off leaves this check out)"
        )
    failed = [finding for finding in findings if finding.kind == "failed"]
    hosts = {finding.host for finding in failed}
    # One rank spoils the sum of all, and a full disk fails on every node: then no node is to blame.
    is_everywhere = len(hosts) > 1 and hosts == {rank.host for rank in ranks}
    slow = [finding for finding in findings if finding.kind == "slow"]
    excluded = _exclude(config, world, recorder, slow if is_everywhere else [*failed, *slow])
    if failed and not hosts <= set(excluded):
        advice = "it is so on every node" if is_everywhere else f"leave out {', '.join(sorted(hosts))}"
        raise TrainingError(f"preflight: {_all(failed)}; {advice}; this attempt trained nothing")
    return not failed and not (excluded and config.preflight_slow == "restart")


def _all(findings: list[Finding]) -> str:
    return "; ".join(finding.describe() for finding in findings)


def _keep(run_dir: Path, recorder: Recorder, content: dict[str, Any]) -> None:
    path = report_path(run_dir, recorder.attempt)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        recorder.warn(f"{path} could not be written ({error.strerror})")


def _exclude(config: TrainConfig, world: World, recorder: Recorder, findings: list[Finding]) -> list[str]:
    """Have the nodes left out when the job is requeued; return those that will be. Collective."""
    nodes: list[str] = []
    if world.is_main:
        # Not all of them may be left out: first those that failed, then the slowest.
        reasons: dict[str, str] = {}
        for finding in sorted(findings, key=lambda each: (each.kind != "failed", -each.ratio)):
            reasons.setdefault(finding.host, finding.describe())
        try:
            nodes = exclude_nodes(reasons, config.exclude_share)
        except OSError as error:
            # The other ranks wait for the answer.
            recorder.warn(f"no node is left out of the next start: {one_line(error)}")
    return [str(node) for node in gather_objects(nodes)[0]]  # pyright: ignore[reportGeneralTypeIssues]


def _gathered(mine: Measured) -> list[Measured]:
    """Return what each rank has measured. Collective."""
    return [each for each in gather_objects(mine) if isinstance(each, Measured)]


def _failed(ranks: Sequence[Measured]) -> bool:
    return any(each.problem for each in ranks)


def _middle(rounds: Sequence[Measured]) -> Measured:
    """Return what a rank has measured in all rounds: the medians of its times, and what failed in any of them.

    Of two rounds the shorter time counts: a rank that is slow is slow in both.
    """

    def median(times: Iterable[float | None]) -> float | None:
        known = [time for time in times if time is not None]
        return statistics.median_low(known) if known else None

    return replace(
        rounds[0],
        problem=next((each.problem for each in rounds if each.problem), ""),
        sums_right=all(each.sums_right for each in rounds),
        product_s=median(each.product_s for each in rounds),
        copy_s=median(each.copy_s for each in rounds),
        pair_s=tuple(median(times) for times in zip(*(each.pair_s for each in rounds if each.pair_s), strict=True)),
        reduce_s=median(each.reduce_s for each in rounds),
    )
