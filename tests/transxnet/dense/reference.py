"""The authors' values of dense networks, where they are at hand: rules for weights and inputs, and the comparison."""

import functools
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from transxnet.dense import Detections, from_upstream, to_upstream

REFERENCE = Path(__file__).parents[3] / "../shared/reference"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference values are not at ../shared/reference"
)


@functools.cache
def rules() -> ModuleType:
    """The rules behind the values: weights, images, truths, proposals."""
    sys.path.insert(0, str(REFERENCE))
    dont_write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return import_module("dense_rules")
    finally:
        sys.path.remove(str(REFERENCE))
        sys.dont_write_bytecode = dont_write


def recorded(name: str, *, double: bool = False) -> dict:
    return json.loads((REFERENCE / ("float64" if double else "") / f"{name}.json").read_text())


def fill(network: nn.Module) -> None:
    """Give a network the weights of the rule."""
    state = to_upstream(network.state_dict())
    filled = {key: rules().fill_dense(key, tuple(value.shape)) for key, value in state.items()}
    network.load_state_dict(from_upstream(filled))


def assert_summary(actual: Tensor, expected: dict, *, rel: float, single: float) -> None:
    """Compare a tensor with its recorded shape, mean, deviation, norm and corners."""
    x = actual.detach().double()
    assert list(x.shape) == expected["shape"]
    assert x.norm().item() == pytest.approx(expected["norm"], rel=rel)
    assert x.std(unbiased=False).item() == pytest.approx(expected["std"], rel=rel)
    assert x.mean().item() == pytest.approx(expected["mean"], abs=rel * expected["std"])
    for name, place in (("corner", (0, slice(None, 4))), ("corner_last", (-1, slice(-4, None)))):
        sample, side = place
        for channel, corner in expected.get(name, {}).items():
            plane = x[sample, int(channel)][side, side]
            assert torch.allclose(plane, torch.tensor(corner, dtype=plane.dtype), atol=single, rtol=rel), (
                name,
                channel,
            )


def assert_gradients(network: nn.Module, expected: dict[str, float], rel: float, floor: float) -> None:
    """Compare the norms of all parameters' gradients."""
    named = {**network.state_dict(), **{key: p.grad for key, p in network.named_parameters()}}
    gradients = to_upstream(named)
    parameters = set(to_upstream({**network.state_dict(), **dict(network.named_parameters())}))
    assert expected.keys() <= parameters
    for key, norm in expected.items():
        gradient = gradients[key]
        actual = 0.0 if gradient is None else gradient.double().norm().item()
        assert actual == pytest.approx(norm, rel=rel, abs=floor), key


def assert_statistics(network: nn.Module, expected: dict[str, float], rel: float) -> None:
    """Compare the norms of all BatchNorm statistics after one pass in training mode."""
    state = to_upstream(network.state_dict())
    assert expected.keys() == {key for key in state if "running_" in key or "num_batches" in key}
    for key, norm in expected.items():
        assert state[key].double().norm().item() == pytest.approx(norm, rel=rel), key


def assert_detections(found: Detections, expected: dict) -> None:
    """Compare the detections of an image with their recorded first ones and sums."""
    assert len(found.boxes) == expected["count"]
    first = len(expected["labels"])
    assert found.labels[:first].tolist() == expected["labels"]
    assert torch.allclose(found.boxes[:first].double(), torch.tensor(expected["boxes"]).double(), atol=1e-4, rtol=1e-5)
    assert found.scores[:first].tolist() == pytest.approx(expected["scores"], rel=1e-6)
    assert found.scores.sum().item() == pytest.approx(expected["score_sum"], rel=1e-6)
    assert found.boxes.sum(0).tolist() == pytest.approx(expected["box_sum"], rel=1e-6)
    if "mask_areas" in expected:
        assert found.masks is not None
        assert list(found.masks.shape[1:]) == expected["mask_shape"]
        # A pixel whose probability is one half within rounding may fall on either side.
        areas = found.masks[:first].sum((1, 2)) - torch.tensor(expected["mask_areas"])
        assert areas.abs().max() <= 1
        assert abs(found.masks.sum().item() - expected["mask_area_sum"]) <= 3
    labels = found.labels.bincount()
    assert {str(k): int(count) for k, count in enumerate(labels) if count} == expected["label_histogram"]


def truths(training: dict) -> tuple[list[Tensor], list[Tensor]]:
    """The boxes and labels of each image of a training part."""
    boxes, labels = [], []
    for image, ((height, width), count) in enumerate(zip(training["image_sizes"], training["counts"], strict=True)):
        of_image, classes = rules().boxes(training["seed"] + image, count, height, width)
        boxes.append(of_image)
        labels.append(classes)
    return boxes, labels
