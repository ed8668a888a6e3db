"""A dense network starts from a classifier's weights: all of its backbone, and nothing else."""

import pytest
import torch
from safetensors.torch import save_file

import transxnet
from tests.transxnet.fixtures import filled_state, images
from transxnet import dense


@pytest.fixture(scope="module")
def classifier():
    model = transxnet.transxnet_n(num_classes=7, image_size=32).eval()
    model.load_state_dict(transxnet.from_upstream(filled_state(model)))
    return model


@pytest.mark.parametrize(
    "build",
    [dense.semantic_fpn, *(pytest.param(b, marks=pytest.mark.thorough) for b in (dense.retinanet, dense.mask_rcnn))],
)
def test_the_backbone_has_the_classifiers_weights(build, classifier, tmp_path):
    save_file(transxnet.to_upstream(classifier.state_dict()), tmp_path / "weights.safetensors")
    network = build("n", 3, image_size=32, pretrained=tmp_path / "weights.safetensors").eval()
    x = images(1, 40, 56)
    with torch.no_grad():
        for actual, expected in zip(network.backbone.stage_maps(x), classifier.stage_maps(x), strict=True):
            assert torch.equal(actual, expected)
    norms = [value for key, value in network.backbone.state_dict().items() if key.startswith("out_norms.")]
    assert {value.unique().item() for value in norms} == {0.0, 1.0}


def test_norms_of_another_dense_network_are_taken_where_they_fit(classifier):
    source = dense.mask_rcnn("n", 3, image_size=32)
    torch.nn.init.constant_(source.backbone.out_norms[2].weight, 5.0)
    target = dense.retinanet("n", 3, image_size=64)
    notes = transxnet.load_weights(target.backbone, source.backbone.state_dict())
    assert (target.backbone.out_norms[2].weight == 5).all()
    # A RetinaNet has no use for the map of the first stage.
    assert [note for note in notes if "resized" not in note] == ["norms of the stage maps left out (not in the model)"]
    notes = transxnet.load_weights(target.backbone, classifier.state_dict())
    assert [note for note in notes if "resized" not in note] == [
        "classifier left out (not in the model)",
        "norms of the stage maps initialised afresh (not in the weights)",
    ]


def test_weights_of_another_variant_are_refused(classifier):
    with pytest.raises(ValueError, match=r"transxnet_n|another variant"):
        transxnet.load_weights(dense.semantic_fpn("t").backbone, classifier.state_dict())
