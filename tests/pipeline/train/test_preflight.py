"""The preflight of two real ranks: what is found, and what stops the attempt."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import TrainingError
from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import World
from pipeline.run.files import read_events
from pipeline.run.preflight import read_table
from pipeline.run.recorder import Recorder
from pipeline.train.measure import measure, neighbour_of, partner_of
from pipeline.train.preflight import preflight
from tests.support.ranks import run_ranks


def attempt(world: World, folders: list[str], shards: list[str]) -> dict[str, Any]:
    """The preflight of a rank that sees the run, and its shards, in a folder of its own."""
    run_dir, config = Path(folders[world.rank]), TrainConfig(preflight="on")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards[world.rank]))
    recorder = Recorder(run_dir, is_main=world.is_main, world_size=world.size)
    state, began = torch.get_rng_state(), time.monotonic()
    try:
        problem, goes_on = "", preflight(run_dir, config, world, recorder)
    except TrainingError as error:
        problem, goes_on = str(error), False
    seconds = time.monotonic() - began
    return {
        "problem": problem,
        "goes on": goes_on,
        "seconds": seconds,
        "random": bool(torch.equal(state, torch.get_rng_state())),
    }


@pytest.mark.parametrize("count", range(2, 12))
def test_partners_are_mutual_and_others_in_the_second_round(count: int):
    rounds = [[partner_of(number, count, shift) for number in range(count)] for shift in (0, 1)]
    for partners in rounds:
        assert partners.count(None) == count % 2
        pairs = [(number, partner) for number, partner in enumerate(partners) if partner is not None]
        assert all(0 <= partner < count and partner != number for number, partner in pairs)
        assert all(partners[partner] == number for number, partner in pairs)
    assert count == 2 or all(first != second for first, second in zip(*rounds, strict=True))


@pytest.mark.parametrize("nodes", ["aab", "abb", "aaabbc", "aabbcc", "abab", "aaa"])
def test_neighbours_are_mutual_whatever_the_number_of_ranks_of_each_node(nodes: str):
    for shift in (0, 1):
        pairs = [(rank, neighbour_of(rank, nodes, shift)) for rank in range(len(nodes))]
        assert any(partner is not None for _, partner in pairs)
        for rank, partner in pairs:
            if partner is not None:
                assert neighbour_of(partner, nodes, shift) == rank
                assert len(set(nodes)) == 1 or nodes[rank] != nodes[partner]


def attempt_on_two_nodes(world: World, run_dir: str) -> tuple[bool, tuple[int | None, ...]]:
    """The preflight of three ranks, of which one has a node for itself; returns what torchrun's variables allow."""
    node = int(world.rank == 2)
    os.environ |= {"GROUP_RANK": str(node), "LOCAL_WORLD_SIZE": str(2 - node)}
    recorder = Recorder(Path(run_dir), is_main=world.is_main, world_size=world.size)
    goes_on = preflight(Path(run_dir), TrainConfig(preflight="on", slow_factor=100.0), world, recorder)
    return goes_on, measure(Path(run_dir), TrainConfig(), world).partners


@pytest.mark.thorough
def test_nodes_may_have_different_numbers_of_ranks(tmp_path: Path):
    answers = run_ranks(attempt_on_two_nodes, 3, str(tmp_path), timeout_s=60)
    assert answers == [(True, (2, 2)), (True, (None, None)), (True, (0, 0))]


def folder(path: Path, *, shards: str = "all") -> Path:
    path.mkdir()
    (path / "shards").mkdir()
    (path / "shards" / "small-train.json").write_text(shards)
    return path


@pytest.mark.thorough
def test_two_ranks_that_see_the_same_go_on_and_leave_a_table(tmp_path: Path):
    run_dir = folder(tmp_path / "run")
    answers = run_ranks(attempt, 2, [str(run_dir)] * 2, [str(run_dir / "shards")] * 2)
    assert [(answer["problem"], answer["goes on"], answer["random"]) for answer in answers] == [("", True, True)] * 2
    lines = read_table(run_dir, 1)
    assert lines[0].split() == ["rank", "host", "product", "copy", "exchange", "sum", "fsync", "clock", "free", "found"]
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    [event] = [event for event in read_events(run_dir) if event["event"] == "preflight"]
    assert event["seconds"] > 0


def test_a_rank_that_sees_another_run_or_other_shards_is_named_and_nothing_is_trained(tmp_path: Path):
    right, other = folder(tmp_path / "right"), folder(tmp_path / "other", shards="half")
    answers = run_ranks(attempt, 2, [str(right), str(other)], [str(each / "shards") for each in (right, other)])
    for answer in answers:
        assert "preflight: rank 1 on " in answer["problem"]
        assert "another config.json in the run directory than most ranks (" in answer["problem"]
        assert "other training shards" in answer["problem"]
        assert "rank 0" not in answer["problem"]
        assert "\n" not in answer["problem"]
        assert answer["random"]
