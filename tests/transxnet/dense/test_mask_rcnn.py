"""Mask R-CNN: names, values, sampling, losses, gradients, detections and masks against the authors' code."""

import pytest
import torch
from torch import Tensor

from tests.transxnet.dense import reference
from tests.transxnet.dense.names import filled, names_digest
from tests.transxnet.dense.scenes import BOXES, LABELS, NONE, SIZES, batch, masks
from transxnet import dense
from transxnet.dense import box_head, mask_head
from transxnet.dense.anchors import padded_size
from transxnet.dense.mask_rcnn import POOLED, sample_regions
from transxnet.dense.roi import pool_regions, region_levels
from transxnet.dense.rpn import Predictions, ProposalNetwork

# The number of parameters, and the sha256 of the sorted lines "key shape" with upstream's names (`names_digest`). When
# recorded, T, S and B equalled the authors' lists.
NAMES = {
    "t": (32500704, "ec451f5adca0168f2b452bb2890b7b61953a3a682680bb70459e4b250febdad4"),
    "s": (46519500, "8bb8b9c9cdd37ed5337c90f8c3bfe9c9fea95fe7a4f96541594a11e10c716c24"),
    "b": (67558810, "97e1f74519afcac3273425b6797dd4fe01ede5f8ae2b253545c5dd8b26284924"),
}

# Losses of nano, whose heads are narrower and count fewer regions, recorded when tiny agreed with the authors' values.
LOSSES = {
    "loss_rpn_cls": 0.551462,
    "loss_rpn_bbox": 0.25785,
    "loss_cls": 1.800871,
    "loss_bbox": 1.254496,
    "loss_mask": 0.726755,
}
DRAWS = [11, 12]

NEAR = {"rel": 1e-6, "single": 1e-6}


@pytest.mark.parametrize("variant", NAMES)
def test_parameters_and_names_do_not_change(variant: str):
    with torch.device("meta"):
        network = dense.mask_rcnn(variant)
    assert (sum(p.numel() for p in network.parameters()), names_digest(network)) == NAMES[variant]


def test_losses_do_not_change():
    network = filled(dense.mask_rcnn("n", 3, image_size=32)).train()
    losses = network(batch(), SIZES, BOXES, LABELS, masks(BOXES), DRAWS)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(LOSSES, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_an_image_has_at_most_a_thousand_proposals(training: bool):
    network = ProposalNetwork(64).train(training)
    torch.manual_seed(0)
    grid = [(64 >> level, 80 >> level) for level in range(5)]
    logits = [torch.randn(1, 3, rows, columns) for rows, columns in grid]
    deltas = [torch.zeros(1, 12, rows, columns) for rows, columns in grid]
    [found] = network.propose(Predictions(logits, deltas), [(256, 320)])
    assert len(found.boxes) == len(found.anchors.unique()) == 1000
    assert (found.scores.diff() <= 0).all()


@pytest.mark.thorough
def test_a_step_is_a_function_of_the_draws_alone():
    torch.manual_seed(5)
    network = dense.mask_rcnn("n", 3, image_size=32, drop_path_rate=0.0).train()
    parameters, gradients, losses = tuple(network.parameters()), [], []
    torch.use_deterministic_algorithms(True)
    try:
        for state, draws in ((0, DRAWS), (1, DRAWS), (0, [11, 13])):
            torch.manual_seed(state)
            losses.append(sum(network(batch(), SIZES, BOXES, LABELS, masks(BOXES), draws).values()))
            if draws == DRAWS:
                gradients.append(torch.autograd.grad(losses[-1], parameters))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert losses[0].item() == losses[1].item() != losses[2].item()


def test_the_ranks_of_proposals_do_not_decide_which_are_sampled(monkeypatch: pytest.MonkeyPatch):
    """Scores that are equal but for rounding change places when gradients are summed in another order."""
    torch.manual_seed(5)
    network = dense.mask_rcnn("n", 3, image_size=32, drop_path_rate=0.0).train()
    losses = network(batch(), SIZES, BOXES, LABELS, masks(BOXES), DRAWS)
    propose, counts = network.rpn.propose, []

    def reversed_ranks(*inputs):
        found = propose(*inputs)
        counts.extend(len(of_image.boxes) for of_image in found)
        return [type(of_image)(*(column.flip(0) for column in of_image)) for of_image in found]

    monkeypatch.setattr(network.rpn, "propose", reversed_ranks)
    again = network(batch(), SIZES, BOXES, LABELS, masks(BOXES), DRAWS)
    assert min(counts) > 2 * network.samples
    assert {key: value.item() for key, value in again.items()} == pytest.approx(
        {key: value.item() for key, value in losses.items()}, rel=1e-5
    )


def test_images_without_objects_train_and_have_no_box_and_mask_loss():
    torch.manual_seed(0)
    network = dense.mask_rcnn("n", 3, image_size=32).train()
    losses = network(batch(), SIZES, *NONE, masks(NONE[0]), DRAWS)
    assert {key for key, value in losses.items() if value.item() == 0} == {"loss_rpn_bbox", "loss_bbox", "loss_mask"}
    sum(losses.values()).backward()
    # Every parameter has a gradient, so that all ranks add up the same ones.
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not unused


@pytest.mark.thorough
def test_a_thousand_objects_of_one_pixel_train():
    torch.manual_seed(0)
    network = dense.mask_rcnn("n", 3, image_size=32).train()
    corners = torch.cartesian_prod(torch.arange(40.0), torch.arange(25.0))
    boxes = [torch.cat((corners, corners + 1), dim=1), BOXES[1]]
    losses = network(batch(), SIZES, boxes, [torch.zeros(1000, dtype=torch.int64), LABELS[1]], masks(boxes), DRAWS)
    assert all(0 < value.item() < 100 for value in losses.values())


@pytest.mark.thorough
def test_detections_have_masks_in_original_pixels():
    network = filled(dense.mask_rcnn("n", 3, image_size=32)).eval()
    originals = [(32, 48), (100, 122)]
    for found, (height, width) in zip(network.detect(batch(), SIZES, originals), originals, strict=True):
        assert 0 < len(found.boxes) <= 100
        assert found.masks is not None
        assert found.masks.shape == (len(found.boxes), height, width)
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.scores.diff() <= 0).all()


def test_masks_that_do_not_fit_are_refused():
    network, (first, second) = dense.mask_rcnn("n", 3, image_size=32), masks(BOXES)
    with pytest.raises(ValueError, match=r"image 1 has 2 labels and masks \(1, 64, 96\)"):
        network(batch(), SIZES, BOXES, LABELS, [first, second[:1]], DRAWS)


def evenly(names: Tensor, number: int, key: int) -> Tensor:
    """The written rule of the reference values in place of a random choice."""
    return reference.rules().choose(torch.arange(len(names)), number)


def build() -> dense.MaskRCNN:
    network = dense.mask_rcnn("t", drop_path_rate=0.0, backend="reference")
    network.choose = evenly
    reference.fill(network)
    return network.double()


@pytest.mark.slow
@reference.needs_reference
def test_outputs_detections_and_masks_are_upstreams():
    expected = reference.recorded("dense_mask_rcnn_t_256x320", double=True)["evaluation"]
    rules = reference.rules()
    network = build().eval()
    size, original = tuple(expected["image_size"]), tuple(expected["ori_shape"])
    x = rules.batch_images([size], 256, 320).double()
    with torch.no_grad():
        levels = network.levels(x, [size])
        predictions = network.rpn(levels)
        found = (network.backbone.forward_features(x), levels, predictions.logits, predictions.deltas)
        for name, tensors in zip(("stage_maps", "neck", "rpn_cls", "rpn_reg"), found, strict=True):
            for actual, summary in zip(tensors, expected[name], strict=True):
                reference.assert_summary(actual, summary, **NEAR)
        ((boxes, scores, _),) = network.rpn.propose(predictions, [size])
        proposals = expected["proposals"]
        assert len(boxes) == proposals["count"]
        first = torch.cat((boxes, scores[:, None]), dim=1)[:20]
        assert torch.allclose(first, torch.tensor(proposals["first_20"]).double(), atol=1e-4, rtol=1e-5)
        assert scores.sum().item() == pytest.approx(proposals["score_sum"], rel=1e-6)
        assert boxes.sum(0).tolist() == pytest.approx(proposals["box_sum"], rel=1e-6)

        fixed = expected["fixed_proposals"]
        truth, _ = rules.boxes(fixed["truth_seed"], 6, *size)
        given = rules.proposals(fixed["seed"], truth, 60, *size)[:, :4]
        heads = fixed["heads"]
        assert torch.bincount(region_levels(given, 4), minlength=4).tolist() == heads["levels"]
        features = pool_regions(levels[:4], POOLED, [given], box_head.REGION)
        reference.assert_summary(features, heads["roi_features"], **NEAR)
        for actual, name in zip(network.box_head(features), ("cls_score", "bbox_pred"), strict=True):
            flat = actual.flatten(1)
            assert flat.std(unbiased=False).item() == pytest.approx(heads[name]["std"], rel=1e-6)
            assert torch.allclose(flat[:3, :8], torch.tensor(heads[name]["first"]).double(), atol=1e-6, rtol=1e-6)
        for scale, target in (("unscaled", size), ("rescaled", original)):
            (detections,) = network.detect_regions(levels, [given], [size], [target])
            reference.assert_detections(detections, fixed["final"][scale])
            (detections,) = network.detect(x, [size], [target])
            reference.assert_detections(detections, expected["end_to_end"][scale])


@reference.needs_reference
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sampling_losses_gradients_and_statistics_are_upstreams():
    expected = reference.recorded("dense_mask_rcnn_t_256x320", double=True)["training"]
    rules = reference.rules()
    network = build().train()
    sizes = [tuple(size) for size in expected["image_sizes"]]
    x = rules.batch_images(sizes, 256, 320).double()
    boxes, labels = reference.truths(expected)
    bitmaps = [
        torch.from_numpy(rules.ellipses(of_image, *padded_size(size)))
        for of_image, size in zip(boxes, sizes, strict=True)
    ]
    assert [m.sum((1, 2)).tolist() for m in bitmaps] == expected["mask_areas"]

    levels = network.levels(x, sizes)
    predictions = network.rpn(levels)
    for image, recorded in enumerate(expected["rpn_assignment"]["sampled"]):
        chosen, _ = network.rpn.sample(predictions.grid(), sizes[image], boxes[image], evenly, 0)
        assert (len(chosen.positive), len(chosen.negative)) == (recorded["pos"], recorded["neg"])
        first = expected["rpn_assignment"]["positives"][image]
        assert chosen.positive[: len(first)].tolist() == [entry["anchor"] for entry in first]

    fixed = expected["fixed_proposals"]
    regions = []
    for image, seed in enumerate(fixed["seeds"]):
        given = rules.proposals(seed, boxes[image], 400, *sizes[image])[:, :4]
        regions.append(sample_regions(given, torch.arange(len(given)), boxes[image], evenly, 0))
        recorded = fixed["roi_sampling"]["images"][image]
        chosen = regions[-1].chosen
        assert chosen.positive.tolist() == recorded["pos_inds"]
        assert chosen.negative[:20].tolist() == recorded["neg_inds_first_20"]
        assert (len(chosen.negative), chosen.negative.sum().item()) == (recorded["neg"], recorded["neg_inds_sum"])
        assert regions[-1].truth.tolist() == recorded["pos_assigned_gt_inds"]
    targets = torch.cat(
        [mask_head.mask_targets(m, r.boxes[: len(r.truth)], r.truth) for m, r in zip(bitmaps, regions, strict=True)]
    )
    assert targets.sum((1, 2)).int().tolist() == fixed["roi_sampling"]["mask_target_sums"]
    first = fixed["roi_sampling"]["mask_target_first"]
    assert ["".join(str(int(value)) for value in row) for row in targets[0]] == first

    losses = network.rpn.losses(predictions, sizes, boxes, evenly, [0, 0])
    losses |= network.region_losses(levels, regions, boxes, labels, bitmaps)
    recorded = {key: value for key, value in fixed["losses"].items() if key not in ("acc", "loss")}
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(recorded, rel=1e-6)
    sum(losses.values()).backward()
    reference.assert_gradients(network, fixed["gradient_norms"], rel=1e-5, floor=1e-9)
    reference.assert_statistics(network, fixed["batchnorm"], rel=1e-6)

    network.zero_grad()
    whole = network(x, sizes, boxes, labels, bitmaps, [0, 0])
    recorded = {k: value for k, value in expected["end_to_end"]["losses"].items() if k not in ("acc", "loss")}
    assert {key: value.item() for key, value in whole.items()} == pytest.approx(recorded, rel=1e-5)
    sum(whole.values()).backward()
    reference.assert_gradients(network, expected["end_to_end"]["gradient_norms"], rel=3e-4, floor=1e-9)
