"""Properties of the sample order over shard sizes, lanes, batch sizes and world sizes."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order.samples import SampleOrder, global_order, rank_positions

properties = settings(max_examples=40, deadline=None)
WORLD_SIZES = (1, 2, 3, 4, 7, 8, 13)

shard_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda sizes: sum(sizes) > 0).map(tuple)
orders = st.builds(
    SampleOrder,
    shard_sizes,
    seed=st.integers(0, 2**40),
    lanes=st.integers(1, 70),
    block_shards=st.integers(1, 6),
)


@properties
@given(orders, st.integers(0, 1000))
def test_each_epoch_is_a_permutation(order, epoch):
    rows = order.at(epoch, np.arange(order.num_samples))
    assert sorted(rows) == list(range(order.num_samples))


@properties
@given(orders, st.integers(1, 40), st.integers(0, 50), st.sampled_from(WORLD_SIZES))
def test_ranks_share_the_same_batch_disjointly(order, share, step, world_size):
    size = share * world_size
    whole, epochs = order.batch(step, size)
    parts = [order.batch(step, size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(len(rows) == share for rows, _ in parts)
    together = sorted((e, r) for rows, part in parts for e, r in zip(part, rows, strict=True))
    assert together == sorted(zip(epochs, whole, strict=True))


@properties
@given(orders, st.integers(1, 60), st.integers(1, 12))
def test_opening_at_a_step_equals_having_read_up_to_it(order, size, steps):
    read = np.concatenate([order.batch(step, size)[0] for step in range(steps)])
    epochs = -(-steps * size // order.num_samples)
    endless = np.concatenate([order.at(epoch, np.arange(order.num_samples)) for epoch in range(epochs)])
    assert (read == endless[: steps * size]).all()
    fresh = SampleOrder(tuple(order.shard_samples), seed=order.seed, lanes=order.lanes, block_shards=order.block_shards)
    assert (fresh.batch(steps - 1, size)[0] == read[-size:]).all()


@properties
@given(orders, st.integers(1, 60), st.integers(0, 30), st.integers(0, 40), st.sampled_from(WORLD_SIZES))
def test_batches_of_several_steps_equal_the_batch_of_each_step(order, size, first, count, world_size):
    steps = range(first, first + count)
    together = list(order.batches(steps, size, rank=world_size - 1, world_size=world_size))
    assert [step for step, _, _ in together] == list(steps)
    for step, rows, epochs in together:
        alone = order.batch(step, size, rank=world_size - 1, world_size=world_size)
        assert (rows == alone[0]).all()
        assert (epochs == alone[1]).all()


@properties
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40).map(tuple),
    st.sampled_from([(4, 1), (4, 2), (8, 4), (8, 8), (64, 8), (26, 13)]),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_a_shard_is_read_by_the_ranks_of_its_lanes(sizes, shape, block_shards, epoch):
    lanes, world_size = shape
    order = SampleOrder(sizes, seed=5, lanes=lanes, block_shards=block_shards)
    n = order.num_samples
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    positions = epoch * n + np.arange(n)
    rows = order.at(epoch, np.arange(n))
    lane_size = n // lanes
    for shard, size in enumerate(sizes):
        ranks = set(positions[shard_of[rows] == shard] % world_size)
        # A shard not longer than a lane lies in one or two lanes, a longer one in more.
        crossed = 2 if size <= lane_size else -(-size // max(1, lane_size)) + 1
        assert len(ranks) <= crossed


@properties
@given(st.integers(0, 10**6), st.integers(1, 4096), st.sampled_from(WORLD_SIZES))
def test_positions_of_a_rank_are_those_that_leave_its_remainder(step, share, world_size):
    for rank in range(world_size):
        positions = rank_positions(step, share * world_size, rank, world_size)
        assert len(positions) == share
        assert (positions % world_size == rank).all()
        assert positions.min() >= step * share * world_size
        assert positions.max() < (step + 1) * share * world_size


@properties
@given(orders, st.integers(1, 40), st.integers(0, 20), st.sampled_from([1, 2, 3, 4]))
def test_shards_are_announced_before_they_are_needed(order, share, step, world_size):
    shard_of = np.repeat(np.arange(len(order.shard_samples)), order.shard_samples)
    size, last = share * world_size, step + 4
    for rank in range(world_size):
        announced, needs = set(), order.shards_by_need(step * size, rank, world_size)
        upcoming = next(needs)
        assert upcoming[0] < (step + 1) * size + order.lanes * world_size
        for now in range(step, last):
            for position, row in zip(
                rank_positions(now, size, rank, world_size),
                order.batch(now, size, rank=rank, world_size=world_size)[0],
                strict=True,
            ):
                while upcoming[0] <= position:
                    announced.add((upcoming[0] // order.num_samples, upcoming[1]))
                    later = next(needs)
                    assert later >= upcoming
                    upcoming = later
                # Shards that an epoch needed before this rank opened are announced with the position of their block.
                assert (position // order.num_samples, shard_of[row]) in announced


def test_epochs_and_seeds_differ_and_neighbours_in_a_class_sorted_set_are_spread():
    sizes = (100,) * 64
    first, second = (global_order(sizes, seed=1, epoch=epoch, lanes=16) for epoch in (0, 1))
    other = global_order(sizes, seed=2, epoch=0, lanes=16)
    assert (first != second).mean() > 0.99
    assert (first != other).mean() > 0.99
    # One class a shard: a batch of 256 sees most of what its 16 lanes' blocks of four shards hold.
    assert len({row // 100 for row in first[:256]}) > 40


def test_the_order_does_not_change_between_versions():
    rows = global_order((5, 0, 7, 3), seed=1, epoch=0, lanes=4, block_shards=2)
    assert rows.tolist() == [7, 11, 2, 14, 6, 0, 3, 13, 8, 10, 1, 12, 5, 9, 4]


@pytest.mark.parametrize("shards", [(), (0, 0)])
def test_an_empty_split_is_an_error(shards):
    with pytest.raises(ValueError, match="cannot be trained on"):
        SampleOrder(shards, seed=0)


def test_a_range_outside_the_epoch_is_an_error():
    with pytest.raises(ValueError, match=r"\[0, 9\) do not lie in an epoch of 8"):
        global_order((4, 4), seed=0, epoch=0, stop=9)


OPEN_LATE = """
import time
import numpy
from pipeline.order.samples import SampleOrder
sizes = (1252,) * 1023 + (1281167 - 1252 * 1023,)
started = time.process_time()
steps = 300 * 1281167 // 1024
for step in (0, steps // 3, steps - 1):
    rows, epochs = SampleOrder(sizes, seed=1).batch(step, 1024)
    assert len(set(rows.tolist())) == 1024
seconds = time.process_time() - started
# getrusage's peak would include that of the parent at the fork.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(seconds, peak)
"""


def test_imagenet_opens_at_any_of_300_epochs_at_once_and_in_little_memory():
    out = subprocess.run([sys.executable, "-c", OPEN_LATE], capture_output=True, text=True, check=True).stdout
    seconds, kilobytes = (float(word) for word in out.split())
    assert kilobytes < 200_000
    assert seconds < 3  # processor time of three openings, a second each
