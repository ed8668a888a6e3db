"""What the preflight finds of ranks, from what they have measured."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.run.preflight import SHOWN, Finding, Measured, judge, table

WELL = Measured(
    host="n1",
    versions="torch 2.15",
    code="c0de",
    run="5ee4",
    shards="da7a",
    product_s=0.001,
    copy_s=0.002,
    pair_s=(0.003, 0.003),
    reduce_s=0.004,
    clock_s=0.0,
    fsync_s=0.005,
    free_gb=100.0,
)


def found(index: int, ranks: int = 4, **changes: object) -> list[Finding]:
    return judge(cluster({index: changes}, ranks), 1.5)


def cluster(changes: dict[int, dict[str, Any]], ranks: int = 4) -> list[Measured]:
    """Ranks that are well but for some changes; each exchanges with those beside it."""
    partners = [(rank ^ 1, ((rank - 1) % ranks ^ 1) + 1 if rank else ranks - 1) for rank in range(ranks)]
    pairs = [(first, second % ranks) for first, second in partners]
    return [replace(WELL, partners=pairs[rank], **changes.get(rank, {})) for rank in range(ranks)]


def test_equal_ranks_are_well_and_so_is_one_that_is_a_little_slower():
    assert found(1) == []
    assert found(1, product_s=0.00149, copy_s=0.0029, pair_s=(0.0044, 0.0044), clock_s=0.9, fsync_s=0.9) == []
    assert judge([WELL], 1.5) == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"code": "0ld"}, "wrong", "it has other code than most ranks (0ld, most: c0de)"),
        ({"versions": "torch 2.14"}, "wrong", "other versions"),
        ({"run": ""}, "wrong", "(none, most: 5ee4)"),
        ({"shards": "0ld"}, "wrong", "other training shards"),
        ({"shards": ""}, "failed", "it does not see the training shards, which other ranks see"),
        ({"problem": "a matrix product failed: ECC error"}, "failed", "ECC error"),
        ({"sums_right": False}, "failed", "wrong numbers"),
        ({"product_s": 0.003}, "slow", "a matrix product takes 3 ms, 3.0 times the others"),
        ({"copy_s": 0.004}, "slow", "a copy in memory takes 4 ms, 2.0 times the others"),
        ({"pair_s": (0.03, 0.03)}, "slow", "an exchange with each neighbour takes 30 ms, 10.0 times the others"),
        ({"clock_s": -3.25}, "note", "its clock differs by -3.2 s"),
        ({"fsync_s": 7.0}, "note", "takes 7.0 s"),
        ({"free_gb": 0.5}, "note", "only 0.50 GB are free"),
    ],
)
@pytest.mark.parametrize("index", [0, 3])
def test_each_kind_of_finding_names_its_rank(changes: dict, kind: str, words: str, index: int):
    [finding] = found(index, **changes)
    assert (finding.rank, finding.kind) == (index, kind)
    assert words in finding.what


def test_of_two_ranks_the_one_without_shards_has_failed_and_remote_shards_are_seen_by_none():
    assert [(finding.rank, finding.kind) for finding in found(0, ranks=2, shards="")] == [(0, "failed")]
    assert judge([replace(WELL, shards="")] * 2, 1.5) == []


def test_a_slow_link_is_found_of_no_rank_and_a_slow_rank_of_two_is_found():
    assert judge(cluster({0: {"pair_s": (0.3, 0.003)}, 1: {"pair_s": (0.3, 0.003)}}), 1.5) == []
    # Only one of the two has waited for the other, and of two ranks that wait for each other none can be told.
    assert judge(cluster({0: {"pair_s": (0.3, 0.003)}}), 1.5) == []
    assert judge(cluster({0: {"pair_s": (0.3, 0.3)}}, ranks=2), 1.5) == []
    waited_for_1 = {0: {"pair_s": (0.03, 0.003)}, 2: {"pair_s": (0.003, 0.03)}}
    assert [finding.rank for finding in judge(cluster(waited_for_1), 1.5)] == [1]
    assert [finding.rank for finding in found(1, ranks=2, product_s=0.01)] == [1]


def test_the_table_of_many_ranks_shows_those_of_which_something_was_found():
    ranks = [replace(WELL, product_s=0.01) if rank in (70, 71) else WELL for rank in range(100)]
    findings = judge(ranks, 1.5)
    lines = table(ranks, findings)
    shown = [line.split()[0] for line in lines[1 : SHOWN + 1]]
    assert shown == [*map(str, range(SHOWN - 2)), "70", "71"]
    assert lines[SHOWN + 1] == f"and {100 - SHOWN} more ranks, of which nothing was found"
    assert lines[-1] == "slow: rank 71 on n1: a matrix product takes 10 ms, 10.0 times the others"
