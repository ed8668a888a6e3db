"""Semantic FPN: names, values, losses and gradients against the authors' code, and small cases worked out by hand."""

import pytest
import torch

import transxnet
from tests.transxnet.dense import reference
from tests.transxnet.dense.names import filled, names_digest
from tests.transxnet.fixtures import images
from transxnet import dense
from transxnet.dense.losses import pixel_cross_entropy
from transxnet.recompute import recompute_in_backward

# The number of parameters, and the sha256 of the sorted lines "key shape" with upstream's names (`names_digest`). When
# recorded, T, S and B equalled the authors' lists.
NAMES = {
    "n": (1531514, "69b9faed2686fb501ac8f81363377cb52243d9b0013b6c14f154b509b668fda9"),
    "t": (16599942, "0e8acfccf5ad6f2ab47758b9ef1338a9f99548fd877bd96bfd92d55da3d7d8e6"),
    "s": (30618738, "b9464019a7602310a7e8b289b5e06894812ce2d78136a03a77d409aa26cd2450"),
    "b": (51658048, "a246e7263fbf9a4c02886d4fc8eb5b1bb33327d2010968ebbb639808031f9fa7"),
}

# Logits of nano, whose neck and head are narrower, at one pixel of two images, recorded when tiny agreed with the
# authors' values.
VALUES = [[-1.095659, -1.671832, 1.041196], [0.211983, -0.575972, -1.255038]]


@pytest.mark.parametrize("variant", "ntsb")
def test_parameters_and_names_do_not_change(variant: str):
    with torch.device("meta"):
        network = dense.semantic_fpn(variant)
    assert (sum(p.numel() for p in network.parameters()), names_digest(network)) == NAMES[variant]


def test_logits_do_not_change_at_any_size():
    network = filled(dense.semantic_fpn("n", 3, image_size=32)).eval()
    with torch.no_grad():
        logits = network(images(2, 61, 37))
    assert logits.shape == (2, 3, 16, 10)
    assert torch.allclose(logits[:, :, 5, 7], torch.tensor(VALUES), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_sum_over_labelled_pixels_divided_by_all_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 2, 2), torch.tensor([[[0, 2], [255, 1]], [[255, 255], [255, 0]]])
    by_hand = sum(
        -logits[n, :, y, x].log_softmax(0)[labels[n, y, x]].item()
        for n, y, x in [(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)]
    )
    for dtype in (torch.int64, torch.uint8):
        assert pixel_cross_entropy(logits, labels.to(dtype)).item() == pytest.approx(by_hand / 8, rel=1e-6)
    assert pixel_cross_entropy(logits, torch.full_like(labels, 255)).item() == 0.0


@pytest.mark.thorough
def test_recomputed_blocks_give_equal_gradients():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        network = dense.semantic_fpn("n", 3, image_size=32, drop_path_rate=0.3).train()
        if recompute:
            assert recompute_in_backward(network, tuple(transxnet.leaf_modules())) == 5
        torch.manual_seed(2)
        sum(network(images(2, 40, 56), torch.arange(2 * 40 * 56).view(2, 40, 56) % 3).values()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert all(torch.equal(gradients[1][name], value) for name, value in gradients[0].items())


def test_unknown_variants_and_classes_are_refused():
    with pytest.raises(ValueError, match="no variant 'l', choose one of n, t, s, b"):
        dense.semantic_fpn("l")
    with pytest.raises(ValueError, match="num_classes is 0"):
        dense.semantic_fpn("n", 0)


@pytest.mark.thorough
@reference.needs_reference
def test_outputs_losses_gradients_and_statistics_are_upstreams():
    expected = reference.recorded("dense_semantic_fpn_t_2x128x160", double=True)
    network = dense.semantic_fpn("t", drop_path_rate=0.0, dropout=0.0, backend="reference")
    reference.fill(network)
    network.double().eval()
    x = reference.rules().image_hw(*(expected["input"][k] for k in (0, 2, 3))).double()
    evaluation, training = expected["evaluation"], expected["training"]
    with torch.no_grad():
        maps = network.backbone.forward_features(x)
        logits = network(x)
        near = {"rel": 1e-6, "single": 1e-6}
        for actual, summary in zip(maps, evaluation["stage_maps"], strict=True):
            reference.assert_summary(actual, summary, **near)
        for actual, summary in zip(network.neck(maps), evaluation["neck"], strict=True):
            reference.assert_summary(actual, summary, **near)
        reference.assert_summary(logits, evaluation["logits"], **near)
        resized = dense.resize_logits(logits, (128, 160))
        reference.assert_summary(resized, evaluation["logits_resized"], **near)
        assert torch.bincount(resized.argmax(1).flatten(), minlength=150).tolist() == evaluation["argmax_histogram"]
        rescaled = evaluation["rescaled"]
        again = dense.resize_logits(resized, tuple(rescaled["ori_shape"])).softmax(1)
        reference.assert_summary(again, rescaled["probabilities"], **near)

    network.train()
    labels = reference.rules().label_map(training["label_seed"], 2, 128, 160)
    losses = network(x, labels)
    assert losses.keys() == {"loss_ce"}
    assert losses["loss_ce"].item() == pytest.approx(training["losses"]["decode.loss_ce"], rel=1e-6)
    losses["loss_ce"].backward()
    reference.assert_gradients(network, training["gradient_norms"], rel=1e-5, floor=1e-9)
    reference.assert_statistics(network, training["batchnorm"], rel=1e-6)


@pytest.mark.thorough
@reference.needs_reference
def test_logits_at_the_size_of_the_recipe_are_upstreams():
    evaluation = reference.recorded("dense_semantic_fpn_t_1x512x512")["evaluation"]
    network = dense.semantic_fpn("t", backend="reference").eval()
    reference.fill(network)
    with torch.no_grad():
        logits = network(reference.rules().image_hw(1, 512, 512))
    reference.assert_summary(logits, evaluation["logits"], rel=1e-4, single=1e-4)
