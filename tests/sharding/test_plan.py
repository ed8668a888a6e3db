"""The plan is a pure function of keys, sizes, seed and shard size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sharding.plan import SAMPLE_OVERHEAD, make_plan


@given(
    sizes=st.lists(st.integers(1, 300_000), max_size=120),
    shard_bytes=st.integers(310_000, 2_000_000),
    seed=st.integers(0, 2**64 - 1),
    per_block=st.one_of(st.none(), st.integers(1, 30)),
)
def test_every_sample_is_in_exactly_one_shard_of_about_the_planned_size(sizes, shard_bytes, seed, per_block):
    keys = [f"key{number}" for number in range(len(sizes))]
    array = np.array(sizes, np.int64)
    blocks = None if per_block is None else (np.arange(len(sizes)) // per_block).astype(np.int32)
    plan = make_plan(keys, array, seed=seed, shard_bytes=shard_bytes, blocks=blocks)
    assert sorted(plan.order.tolist()) == list(range(len(sizes)))
    shards = [plan.samples(number) for number in range(plan.num_shards)]
    assert sum(map(len, shards)) == len(sizes)
    for samples in shards:
        footprint = array[samples] + SAMPLE_OVERHEAD
        assert len(samples)
        assert footprint.sum() <= shard_bytes + footprint.max()


def test_the_order_depends_only_on_keys_and_seed():
    keys = [f"n{number:08d}_{number}" for number in range(500)]
    sizes = np.arange(500, dtype=np.int64) + 1000
    plan = make_plan(keys, sizes, seed=0, shard_bytes=100_000)
    backwards = make_plan(keys[::-1], sizes[::-1], seed=0, shard_bytes=100_000)
    assert [keys[sample] for sample in plan.order] == [keys[::-1][sample] for sample in backwards.order]
    assert (plan.bounds == backwards.bounds).all()
    other = make_plan(keys, sizes, seed=1, shard_bytes=100_000)
    assert (other.order != plan.order).mean() > 0.9
    # The order of seed 0 must stay the same, so that builds of an earlier version can resume.
    assert [keys[sample] for sample in plan.order[:3]] == ["n00000241_241", "n00000377_377", "n00000433_433"]


def test_a_shard_reads_few_row_groups_and_shuffles_them():
    blocks = (np.arange(1000) // 10).astype(np.int32)
    plan = make_plan([str(n) for n in range(1000)], np.full(1000, 10_000), seed=3, shard_bytes=1_000_000, blocks=blocks)
    for number in range(plan.num_shards):
        samples = plan.samples(number)
        assert len(np.unique(blocks[samples])) <= len(samples) // 10 + 2
        assert (np.diff(samples) != 1).mean() > 0.8  # the row groups are mixed
