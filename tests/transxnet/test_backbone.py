"""The norms that dense networks put on the stage maps: values, names, and the backbones of published dense files."""

import json
from pathlib import Path

import pytest
import torch

import transxnet
from tests.transxnet.fixtures import images
from transxnet import from_upstream, to_upstream
from transxnet.backbone import Backbone

REFERENCE = Path(__file__).parents[2] / "../shared/reference"


def test_out_norms_normalise_each_map_and_leave_the_logits():
    torch.manual_seed(0)
    plain = transxnet.transxnet_n(num_classes=5, image_size=32).eval()
    normed = transxnet.transxnet_n(num_classes=5, image_size=32, out_norms=True).eval()
    missing = normed.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"out_norms.{stage}.{leaf}" for stage in range(4) for leaf in ("weight", "bias")]
    norms = normed.out_norms
    assert norms is not None
    for norm in norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = images(2, 45, 37)
    with torch.no_grad():
        assert torch.equal(normed(x), plain(x))
        for stage, (actual, raw) in enumerate(zip(normed.forward_features(x), plain.forward_features(x), strict=True)):
            # Whole statistics of a sample, over channels and positions.
            centred = raw - raw.mean((1, 2, 3), keepdim=True)
            expected = centred / (raw.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            weight, bias = (
                normed.state_dict()[f"out_norms.{stage}.weight"],
                normed.state_dict()[f"out_norms.{stage}.bias"],
            )
            expected = expected * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_do_not_depend_on_the_norms():
    states = []
    for out_norms in (False, True):
        torch.manual_seed(3)
        states.append(transxnet.transxnet_n(num_classes=5, image_size=32, out_norms=out_norms).state_dict())
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())


@pytest.mark.parametrize("stages", [(0, 1, 2, 3), (1, 2, 3), ()])
def test_names_of_a_dense_backbone_round_trip(stages: tuple[int, ...]):
    config = transxnet.config_for("transxnet_n", image_size=32)
    state = Backbone(config, stages).state_dict()
    upstream = to_upstream(state)
    assert [key for key in upstream if key.startswith("norm")] == [
        f"norm{2 * stage}.{leaf}" for stage in stages for leaf in ("weight", "bias")
    ]
    assert list(from_upstream(upstream)) == list(state)
    if stages:
        del upstream["norm2.bias"]
        with pytest.raises(ValueError, match=r"1 missing \(norm2.bias\)"):
            from_upstream(upstream)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference values are not at ../shared/reference")
@pytest.mark.parametrize("variant", ["t", *(pytest.param(v, marks=pytest.mark.thorough) for v in "sb")])
@pytest.mark.parametrize(
    ("network", "stages"), [("semantic_fpn", range(4)), ("retinanet", (1, 2, 3)), ("mask_rcnn", range(4))]
)
def test_the_backbones_of_published_dense_files_load_strictly(network: str, stages, variant: str):
    published = json.loads((REFERENCE / f"dense_keys_{network}_{variant}.json").read_text())["keys"]
    state = {
        key.removeprefix("backbone."): torch.empty(shape, device="meta")
        for key, (shape, _, _) in published.items()
        if key.startswith("backbone.")
    }
    with torch.device("meta"):
        backbone = Backbone(transxnet.config_for(f"transxnet_{variant}"), stages)
    backbone.load_state_dict(from_upstream(state), assign=True)
