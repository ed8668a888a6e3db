"""Which operations RandAugment draws, and how strong, against timm's."""

import math
import random

import numpy as np
import pytest
from timm.data import auto_augment

from pipeline.augment.randaugment import PolicyError, RandAugment
from pipeline.order import draws
from tests.pipeline.augment.compare import quantiles_apart

FILL = (124, 116, 104)


def test_strengths_are_distributed_as_timms():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    uniforms = draws.uniforms(draws.key(2, np.arange(20000)), 2).tolist()
    ours = np.array([policy.strength(*pair) for pair in uniforms])
    random.seed(0)
    theirs = np.array([max(0.0, min(random.gauss(9, 0.5), 10)) for _ in range(20000)])
    assert quantiles_apart(ours, theirs) < 0.03


def test_layers_are_chosen_and_applied_as_often_as_timms():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    counts = dict.fromkeys((choice.name for choice in policy.choices), 0)
    applied = 0

    def counting(choice):
        def operation(pixels, argument, resampling):
            counts[choice.name] += 1
            return pixels

        return type(choice)(choice.name, operation, choice.argument)

    counted = type(policy)(**{**vars(policy), "choices": tuple(counting(choice) for choice in policy.choices)})
    images = 6000
    for uniforms in draws.uniforms(draws.key(5, np.arange(images)), policy.draws).tolist():
        before = sum(counts.values())
        counted(np.zeros((2, 2, 3), np.uint8), uniforms, FILL, None)
        applied += sum(counts.values()) > before
    assert applied / images == pytest.approx(0.75, abs=0.02)
    for count in counts.values():
        assert count / images == pytest.approx(1 / 15, abs=0.012)
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert sorted(counts) == sorted(op.name for op in theirs.ops)
    assert (theirs.num_layers, theirs.ops[0].prob, theirs.choice_weights) == (2, policy.probability, None)


@pytest.mark.parametrize(
    "description", ["rand", "rand-m9", "rand-m7-n3-mstd101-mmax12", "rand-p0.7-inc0", "rand-m9-mstdinf"]
)
def test_descriptions_are_read_as_timm_reads_them(description):
    ours, theirs = RandAugment.parse(description), auto_augment.rand_augment_transform(description, {})
    op = theirs.ops[0]
    bound = op.magnitude_max or 10
    assert (ours.magnitude, ours.layers, ours.probability, ours.bound) == (
        op.magnitude,
        theirs.num_layers,
        op.prob,
        bound,
    )
    assert ours.deviation == op.magnitude_std or math.isinf(ours.deviation)


@pytest.mark.parametrize("description", ["augmix-m3", "rand-m9-tweights", "rand-m", "rand-m9-", "m9"])
def test_a_description_that_is_not_understood_is_an_error(description):
    with pytest.raises(PolicyError, match=r"is not understood: it is rand-mM-mstdS-incI"):
        RandAugment.parse(description)
