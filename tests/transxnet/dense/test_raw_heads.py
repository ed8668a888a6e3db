"""The raw outputs for an export are those that a network's detections and losses are made of."""

import torch

from transxnet import dense

SIZE = (64, 96)


def test_those_of_a_retinanet_are_its_predictions():
    network = dense.retinanet("n", 3, image_size=32).eval()
    images, raw = torch.randn(2, 3, *SIZE), dense.RawHeads(network)
    found = dict(zip(raw.outputs, raw(images), strict=True))
    logits, deltas, (_, anchors) = network.predict(images, [SIZE] * 2)
    assert torch.equal(found["class_logits"], logits)
    assert torch.equal(found["box_deltas"], deltas)
    assert found["box_deltas"].shape == (2, sum(map(len, anchors)), 4)


def test_those_of_a_mask_rcnn_lead_to_its_detections():
    network = dense.mask_rcnn("n", 3, image_size=32).eval()
    images, raw = torch.randn(1, 3, *SIZE), dense.RawHeads(network)
    found = dict(zip(raw.outputs, raw(images), strict=True))
    levels = network.levels(images, [SIZE])
    for name, level in zip(("p2", "p3", "p4", "p5"), levels, strict=False):
        assert torch.equal(found[name], level)
    anchors = network.rpn.anchors.boxes(network.rpn(levels).grid(), images.device)
    assert found["rpn_deltas"].shape == (1, sum(map(len, anchors)), 4)
    assert found["rpn_logits"].shape == (1, sum(map(len, anchors)), 1)
