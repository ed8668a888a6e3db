"""Anchors, assignment and sampling on small cases worked out by hand, and overlaps and boxes against torchvision."""

import pytest
import torch
from torchvision import ops

from transxnet.dense import assign as module
from transxnet.dense.anchors import AnchorGrid, padded_size
from transxnet.dense.assign import IGNORED, NEGATIVE, Thresholds, assign, keyed_choice, mix, sample
from transxnet.dense.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, suppress

FIRST = Thresholds(positive=0.5, negative=0.4, lowest=0.0)


def random_boxes(count: int, seed: int = 0, side: int = 100) -> torch.Tensor:
    corners = torch.rand((count, 2, 2), generator=torch.Generator().manual_seed(seed)) * side
    return torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1)


def test_anchors_are_centred_on_corners_and_ordered_by_ratio_then_scale():
    (level,) = AnchorGrid((8,), (1.0, 2.0), (0.25, 1.0)).boxes([(2, 3)], torch.device("cpu"))
    assert level.shape == (2 * 3 * 4, 4)
    assert level[:4].tolist() == [[-8, -2, 8, 2], [-16, -4, 16, 4], [-4, -4, 4, 4], [-8, -8, 8, 8]]
    # The next column, then the next row.
    assert (level[4] - level[0]).tolist() == [8, 0, 8, 0]
    assert (level[12] - level[0]).tolist() == [0, 8, 0, 8]


def test_an_anchor_has_the_same_number_in_a_batch_that_is_padded_to_more():
    grid = AnchorGrid((8, 64), (1.0,))
    small, large = (
        (torch.cat(grid.names(sizes, torch.device("cpu"))), torch.cat(grid.boxes(sizes, torch.device("cpu"))))
        for sizes in ([(8, 9), (1, 2)], [(12, 16), (2, 2)])
    )
    assert len(set(large[0].tolist())) == len(large[0]) == len(large[1])
    of_large = dict(zip(large[0].tolist(), large[1].tolist(), strict=True))
    assert [of_large[name] for name in small[0].tolist()] == small[1].tolist()


def test_anchors_beyond_an_images_own_padding_are_not_valid():
    grid = AnchorGrid((8, 64), (1.0,))
    assert padded_size((33, 64)) == (64, 64)
    rows = [(12, 16), (2, 2)]
    valid = grid.valid(rows, (33, 64), torch.device("cpu")).split([12 * 16 * 3, 2 * 2 * 3])
    assert valid[0].view(12, 16, 3)[:8, :8].all()
    assert valid[0].sum() == 8 * 8 * 3
    assert valid[1].view(2, 2, 3).all(dim=2).tolist() == [[True, False], [False, False]]


def test_a_box_goes_to_the_truth_it_overlaps_most_and_a_truth_takes_its_best_boxes():
    truths = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60]])
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # equals truth 0
            [0, 0, 10, 19],  # truth 1: 0.95
            [0, 0, 10, 14.5],  # truth 1: 0.725, truth 0: 0.69
            [0, 0, 4.5, 10],  # truth 0: 0.45, undecided
            [0, 0, 3, 10],  # 0.3: none
            [55, 55, 65, 65],  # truth 2: 0.14, but no other box is as near
            [45, 45, 55, 55],  # truth 2: the same overlap
            [80, 80, 90, 90],  # none
        ]
    )
    assert assign(boxes, truths, FIRST).tolist() == [0, 1, 1, IGNORED, NEGATIVE, 2, 2, NEGATIVE]
    lowest = FIRST._replace(lowest=0.3)
    assert assign(boxes, truths, lowest).tolist() == [0, 1, 1, IGNORED, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE]


def test_the_last_of_several_truths_takes_a_box_even_from_a_better_one():
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    truths = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 20, 20]])
    assert assign(boxes, truths, FIRST).tolist() == [2]


def test_truths_that_overlap_no_box_and_images_without_truths_take_nothing():
    boxes = random_boxes(6)
    assert assign(boxes, torch.tensor([[200.0, 200, 210, 210]]), FIRST).tolist() == [NEGATIVE] * 6
    assert assign(boxes, torch.empty((0, 4)), FIRST).tolist() == [NEGATIVE] * 6
    assert assign(torch.empty((0, 4)), boxes, FIRST).tolist() == []


def test_a_thousand_truths_are_assigned_as_in_one_piece(monkeypatch):
    boxes, truths = random_boxes(500, 1), random_boxes(1000, 2)
    expected = assign(boxes, truths, FIRST)
    monkeypatch.setattr(module, "CHUNK", 1000)
    assert torch.equal(assign(boxes, truths, FIRST), expected)


def test_samples_fill_up_with_negatives_and_depend_on_the_key_alone():
    assigned = torch.tensor([0, NEGATIVE, IGNORED] * 100)
    chosen = sample(assigned, 60, 20, keyed_choice, 7)
    assert (len(chosen.positive), len(chosen.negative)) == (20, 40)
    assert (assigned[chosen.positive] == 0).all()
    assert (assigned[chosen.negative] == NEGATIVE).all()
    assert all((part.diff() > 0).all() for part in chosen)
    again = sample(assigned, 60, 20, keyed_choice, 7)
    assert all(torch.equal(a, b) for a, b in zip(chosen, again, strict=True))
    other = sample(assigned, 60, 20, keyed_choice, 8)
    assert not torch.equal(chosen.negative, other.negative)
    # Boxes are chosen by their names, wherever they stand, and one box less changes one choice.
    names, order = torch.arange(300) * 7, torch.randperm(300)
    moved = sample(assigned[order], 60, 20, keyed_choice, 7, names[order])
    by_name = sample(assigned, 60, 20, keyed_choice, 7, names)
    for a, b in zip(moved, by_name, strict=True):
        assert set(names[order][a].tolist()) == set(names[b].tolist())
    without = sample(assigned[1:], 60, 20, keyed_choice, 7, names[1:])
    assert len(set(names[1:][without.positive].tolist()) - set(names[by_name.positive].tolist())) <= 1
    few = sample(assigned[:9], 60, 20, keyed_choice, 7)
    assert (few.positive.tolist(), few.negative.tolist()) == ([0, 3, 6], [1, 4, 7])
    # The sampler's own state is none: recorded, so that it stays the same on every machine.
    assert keyed_choice(torch.arange(1000), 4, mix(5, 1)).tolist() == [330, 806, 109, 888]


def test_every_candidate_is_chosen_equally_often():
    counts = torch.zeros(50)
    for key in range(4000):
        counts[keyed_choice(torch.arange(50), 10, mix(key, 1))] += 1
    # 800 each; five deviations of a binomial count.
    assert (counts - 800).abs().max() < 5 * (4000 * 0.2 * 0.8) ** 0.5


def test_overlaps_and_boxes_equal_torchvisions():
    truths, boxes = random_boxes(7, 1), random_boxes(50, 2)
    assert torch.allclose(box_iou(truths, boxes), ops.box_iou(truths, boxes), atol=1e-6)
    assert torch.equal(clip_boxes(boxes, (40, 60)), ops.clip_boxes_to_image(boxes, (40, 60)))
    pairs = random_boxes(50, 3)
    stds = (0.1, 0.1, 0.2, 0.2)
    assert torch.allclose(decode_boxes(boxes, encode_boxes(boxes, pairs, stds), stds), pairs, atol=1e-3)
    widest = decode_boxes(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 99, -99]]))
    assert widest[0].tolist() == pytest.approx([5 - 312.5, 5 - 0.08, 5 + 312.5, 5 + 0.08])


def test_duplicates_are_suppressed_within_their_group():
    boxes = torch.cat((random_boxes(200, 4), random_boxes(200, 4) + 0.5))
    scores = torch.rand(400, generator=torch.Generator().manual_seed(5))
    groups = torch.arange(400) % 3
    keep = suppress(boxes, scores, groups, 0.5, 1000)
    assert keep.tolist() == ops.batched_nms(boxes, scores, groups, 0.5).tolist()
    assert suppress(boxes, scores, groups, 0.5, 5).tolist() == keep[:5].tolist()
    assert len(suppress(boxes[:0], scores[:0], groups[:0], 0.5, 5)) == 0
