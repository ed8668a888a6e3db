"""Published checkpoints: conversion of names in both directions, and values computed by the authors' code."""

import hashlib
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

import transxnet
from tests.transxnet.fixtures import filled_state, images
from transxnet import from_upstream, to_upstream

REFERENCE = Path(__file__).parents[2] / "../shared/reference"
PARAMETERS = {"n": 1443756, "t": 12834808, "s": 26864068, "b": 48009002}
# sha256 of the sorted lines "key shape" with upstream's names. When recorded, T, S and B equalled the authors' lists.
NAMES = {
    "n": "85b8169c42ca577f6ff9db3964851137916aa6a5c9ea5cbabc0b45ca17d26885",
    "t": "e612a1f2a1a20f9984007de587bf3c6c5f4d9bc9efcb174c84de045a7366de38",
    "s": "4d6ff881731b27f4bf5186761c2cae9a7740c998e82693b7085ffca118545403",
    "b": "a679baf17c3fca8a160a71cd93a69f46d079471d6c0d894057fd7f49d41f8c7b",
}

# Nano's logits, recorded when T, S and B agreed with the authors' values.
VALUES = [[0.5568942, -0.3472403, -0.0001625, 0.9022274], [-0.3319871, 0.1058348, -0.5048395, 0.5376741]]

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference values are not at ../shared/reference"
)


@pytest.mark.parametrize("variant", "ntsb")
def test_parameters_and_names_do_not_change(variant: str):
    with torch.device("meta"):
        model = transxnet.build(f"transxnet_{variant}")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[variant]
    lines = sorted(f"{key} {list(value.shape)}" for key, value in to_upstream(model.state_dict()).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES[variant]


@needs_reference
@pytest.mark.parametrize("variant", ["t", *(pytest.param(v, marks=pytest.mark.thorough) for v in "sb")])
def test_names_and_shapes_are_the_published_ones(variant: str):
    published = json.loads((REFERENCE / f"keys_{variant}.json").read_text())
    with torch.device("meta"):
        state = transxnet.build(f"transxnet_{variant}").state_dict()
    upstream = to_upstream(state)
    assert {key: list(value.shape) for key, value in upstream.items()} == published
    assert list(from_upstream(upstream)) == list(state)


@pytest.mark.parametrize(("num_classes", "image_size"), [(1000, 224), (10, 224), (21, 97)])
def test_conversion_round_trips_for_other_classes_and_sizes(num_classes: int, image_size: int):
    model = transxnet.transxnet_n(num_classes=num_classes, image_size=image_size)
    upstream = to_upstream(model.state_dict())
    back = from_upstream(upstream)
    assert list(back) == list(model.state_dict())
    assert all(back[key] is value or torch.equal(back[key], value) for key, value in model.state_dict().items())
    assert list(to_upstream(back)) == list(upstream)


@pytest.mark.parametrize("convert", [from_upstream, to_upstream])
def test_conversion_names_missing_and_unknown_keys(convert):
    state = transxnet.transxnet_n(image_size=32).state_dict()
    if convert is from_upstream:
        state = to_upstream(state)
    first = next(iter(state))
    extra = {**state, "head.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"0 missing, 1 unknown \(head.bias\)"):
        convert(extra)
    lacking = {key: value for key, value in state.items() if key != first}
    with pytest.raises(ValueError, match=rf"1 missing \({first}\), 0 unknown"):
        convert(lacking)
    with pytest.raises(ValueError, match="unknown"):
        convert({f"module.{key}": value for key, value in state.items()})


def test_values_do_not_change():
    model = transxnet.transxnet_n(num_classes=4, image_size=32).eval()
    model.load_state_dict(from_upstream(filled_state(model)))
    with torch.no_grad():
        logits = model(images(2, 40, 52))
    assert torch.allclose(logits, torch.tensor(VALUES), rtol=1e-4, atol=1e-5), logits.tolist()


@needs_reference
@pytest.mark.parametrize("variant", ["t", *(pytest.param(v, marks=pytest.mark.thorough) for v in "sb")])
def test_values_equal_those_of_the_authors_code(variant: str):
    expected = json.loads((REFERENCE / "upstream_224.json").read_text())[f"{variant}@224"]
    weights = _load_module(REFERENCE / "weights.py")
    with torch.device("meta"):
        model = transxnet.build(f"transxnet_{variant}", drop_path_rate=0.0)
    names = to_upstream(model.state_dict())
    filled = {key: weights.fill(key, tuple(value.shape)) for key, value in names.items()}
    model.load_state_dict(from_upstream(filled), assign=True)
    x = weights.image(2, 224)

    model.eval()
    with torch.no_grad():
        maps = model.forward_features(x)
        logits = model.classifier(maps[-1])
    assert logits[:, :10].tolist() == [pytest.approx(row, rel=1e-4, abs=1e-4) for row in expected["logits_first10"]]
    assert logits.norm(dim=1).tolist() == pytest.approx(expected["logits_norm"], rel=1e-4)
    assert logits.argmax(1).tolist() == expected["argmax"]
    for features, stage in zip(maps, expected["stages"].values(), strict=True):
        assert list(features.shape) == stage["shape"]
        assert features.std().item() == pytest.approx(stage["std"], rel=1e-4)
        assert features.mean().item() == pytest.approx(stage["mean"], abs=1e-4 * stage["std"])
        assert features[0, :4, 0, 0].tolist() == pytest.approx(stage["corner"], rel=1e-4, abs=1e-4 * stage["std"])

    model.train()
    logits = model(x)
    assert logits.norm(dim=1).tolist() == pytest.approx(expected["train_logits_norm"], rel=1e-4)
    weight = np.random.RandomState(7).standard_normal(tuple(logits.shape)).astype(np.float32)
    (logits * torch.from_numpy(weight)).mean().backward()
    state = to_upstream(model.state_dict())
    gradients = to_upstream({**model.state_dict(), **{key: p.grad for key, p in model.named_parameters()}})
    # A bias just before a BatchNorm has gradient zero up to rounding.
    floor = 1e-6 * max(expected["grad_norms"].values())
    for key, norm in expected["grad_norms"].items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-3, abs=floor), key
    for key, norm in expected["bn_after"].items():
        assert state[key].norm().item() == pytest.approx(norm, rel=1e-4), key


def _load_module(path: Path):
    spec = spec_from_file_location("reference_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    dont_write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = dont_write
    return module
