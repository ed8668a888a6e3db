"""RetinaNet: names, values, assignment, losses, gradients and detections against the authors' code, and without it."""

import pytest
import torch

from tests.transxnet.dense import reference
from tests.transxnet.dense.names import filled, names_digest
from tests.transxnet.dense.scenes import BOXES, LABELS, NONE, SIZES, batch
from transxnet import dense

# The number of parameters, and the sha256 of the sorted lines "key shape" with upstream's names (`names_digest`). When
# recorded, T, S and B equalled the authors' lists.
NAMES = {
    "t": (22439812, "b40f7caa1efe46013267657b01981b56408d0c5a43a49058223b834dbef8016f"),
    "s": (36601936, "6124d73d6686a9a128363af5f25a0b230686219614b4f2c3e03a94308651583e"),
    "b": (58006790, "33c39e5310f9df6fb754e95ac1f10fb0517c2a82d846249e9c38e465d2dc8ab7"),
}

# Losses of nano, recorded when tiny agreed with the authors' values.
LOSSES = {"loss_cls": 7.593615, "loss_bbox": 1.907869}


@pytest.mark.parametrize("variant", NAMES)
def test_parameters_and_names_do_not_change(variant: str):
    with torch.device("meta"):
        network = dense.retinanet(variant)
    assert (sum(p.numel() for p in network.parameters()), names_digest(network)) == NAMES[variant]


def test_losses_do_not_change():
    network = filled(dense.retinanet("n", 3, image_size=32)).train()
    losses = network(batch(), SIZES, BOXES, LABELS)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(LOSSES, rel=1e-3)


def test_the_coarsest_levels_are_made_of_the_last_map_without_an_activation():
    torch.manual_seed(0)
    neck = dense.retinanet("n", 3, image_size=32).neck
    maps = [torch.randn(1, conv.in_channels, 16 >> k, 24 >> k) for k, conv in enumerate(neck.laterals)]
    levels = neck(maps)
    assert torch.equal(levels[3], neck.outputs[3](maps[-1]))
    assert torch.equal(levels[4], neck.outputs[4](levels[3]))
    assert (levels[3] < 0).any()


def test_images_without_objects_train_and_count_one_positive():
    torch.manual_seed(0)
    network = dense.retinanet("n", 3, image_size=32).train()
    losses = network(batch(), SIZES, *NONE)
    assert losses["loss_bbox"].item() == 0.0
    # Before training every class has probability 0.01 at each valid anchor, and two images count one positive each.
    grid = [tuple(-(-side // stride) for side in (64, 96)) for stride in network.anchors.strides]
    valid = sum(int(network.anchors.valid(grid, size, torch.device("cpu")).sum()) for size in SIZES)
    per_anchor = 3 * 0.75 * 0.01**2 * -torch.tensor(0.99).log().item()
    assert losses["loss_cls"].item() == pytest.approx(valid * per_anchor / 2, rel=0.05)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_detections_are_best_first_within_the_image_and_in_its_original_pixels():
    network = filled(dense.retinanet("n", 3, image_size=32)).eval()
    with torch.no_grad():
        torch.nn.init.zeros_(network.head.class_logits.bias)
    whole = network(batch(), SIZES)
    half = network.detect(batch(), SIZES, [(height // 2, width // 2) for height, width in SIZES])
    for found, original, (height, width) in zip(whole, half, SIZES, strict=True):
        assert 0 < len(found.boxes) <= 100
        assert (found.scores.diff() <= 0).all()
        assert found.scores.min() > 0.05
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        scale = torch.tensor([width / (width // 2), height / (height // 2)] * 2)
        assert torch.allclose(original.boxes * scale, found.boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "boxes", "labels", "message"),
    [
        (SIZES[:1], BOXES, LABELS, "2 images and 1 sizes"),
        ([(64, 97), SIZES[1]], BOXES, LABELS, "image 0 has 64 x 97 pixels, the batch 64 x 96"),
        (SIZES, BOXES[:1], LABELS, "boxes of 1 and labels of 2"),
        (SIZES, [BOXES[0], BOXES[1][:0]], LABELS, r"image 1 has 2 labels and boxes \(0, 4\)"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(sizes, boxes, labels, message: str):
    with pytest.raises(ValueError, match=message):
        dense.retinanet("n", 3, image_size=32)(batch(), sizes, boxes, labels)


def build() -> dense.RetinaNet:
    network = dense.retinanet("t", drop_path_rate=0.0, backend="reference")
    reference.fill(network)
    return network.double()


@pytest.mark.thorough
@reference.needs_reference
def test_outputs_and_detections_are_upstreams():
    evaluation = reference.recorded("dense_retinanet_t_256x320", double=True)["evaluation"]
    network = build().eval()
    size = tuple(evaluation["image_size"])
    x = reference.rules().batch_images([size], 256, 320).double()
    near = {"rel": 1e-6, "single": 1e-6}
    with torch.no_grad():
        maps = network.backbone.forward_features(x)
        levels = network.neck(maps[1:])
        for name, tensors in zip(
            ("stage_maps", "neck", "cls_score", "bbox_pred"), (maps, levels, *network.head(levels)), strict=True
        ):
            for actual, summary in zip(tensors, evaluation[name], strict=True):
                reference.assert_summary(actual, summary, **near)
        for original, name in ((size, "detections"), (tuple(evaluation["ori_shape"]), "detections_rescaled")):
            (found,) = network.detect(x, [size], [original])
            reference.assert_detections(found, evaluation[name])


@reference.needs_reference
@pytest.mark.slow
def test_assignment_losses_gradients_and_statistics_are_upstreams():
    training = reference.recorded("dense_retinanet_t_256x320", double=True)["training"]
    network = build().train()
    sizes = [tuple(size) for size in training["image_sizes"]]
    boxes, labels = reference.truths(training)
    x = reference.rules().batch_images(sizes, 256, 320).double()
    rows = [tuple(-(-side // stride) for side in (256, 320)) for stride in network.anchors.strides]
    anchors = network.anchors.boxes(rows, x.device)
    assignment = training["assignment"]
    assert [len(level) for level in anchors] == assignment["anchors_per_level"]
    for level, first in zip(anchors, assignment["anchors_first_20"], strict=True):
        assert torch.allclose(level[:20], torch.tensor(first), rtol=1e-5)
    assigned = network.assign((rows, anchors), x, sizes, boxes)
    counts = [len(level) for level in anchors]
    for image, result in enumerate(assigned):
        assert [int((part >= 0).sum()) for part in result.split(counts)] == assignment["positives_per_level"][image]
        assert [int((part >= -1).sum()) for part in result.split(counts)] == assignment["weighted_per_level"][image]
        at = (result >= 0).nonzero().flatten()
        first = assignment["positives"][image]
        assert at[: len(first)].tolist() == [entry["anchor"] for entry in first]
        assert labels[image][result[at[: len(first)]]].tolist() == [entry["label"] for entry in first]
    losses = network(x, sizes, boxes, labels)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(
        {key: training["losses"][key] for key in ("loss_cls", "loss_bbox")}, rel=1e-6
    )
    sum(losses.values()).backward()
    reference.assert_gradients(network, training["gradient_norms"], rel=1e-5, floor=1e-9)
    reference.assert_statistics(network, training["batchnorm"], rel=1e-6)
