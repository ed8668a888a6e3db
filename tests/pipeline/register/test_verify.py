"""The verification of a model before it is registered: where its code comes from, and how far its top-1 may lie."""

import dataclasses
from pathlib import Path

import mlflow.pyfunc
import pytest

from pipeline.common.processes import PROJECT_ROOT
from pipeline.register.verify import tolerance, verify
from pipeline.tracking.client import TrackingError
from pipeline.weights.card import ModelCard
from tests.support.tracking_runs import new_store

pytestmark = pytest.mark.filterwarnings("ignore:.*Add type hints to the `predict` method")
CARD = ModelCard(
    name="m",
    num_classes=1,
    image_size=32,
    classes=(("n", "n"),),
    preprocessing=None,
    step=1,
    epoch=1,
    scores={"top1": 1.0},
)
ALWAYS_RIGHT = """
import pandas as pd
import transxnet
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class AlwaysRight(PythonModel):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"wnid": ["n"] * len(model_input)})


set_model(AlwaysRight())
"""


def save(folder: Path, *, code_paths: list[str]) -> str:
    """Save a model that imports transxnet and answers "n" to every image."""
    program = folder / "always_right.py"
    program.write_text(ALWAYS_RIGHT)
    mlflow.pyfunc.save_model(
        folder / "model", python_model=str(program), code_paths=code_paths, pip_requirements=["mlflow"]
    )
    return str(folder / "model")


def offer_checkout(folder: Path, monkeypatch, how: str) -> None:
    """Make this checkout's transxnet importable in every new process, by another way than its folder on the path."""
    folder.mkdir()
    if how == "link":
        (folder / "transxnet").symlink_to(PROJECT_ROOT / "transxnet")
    else:
        (folder / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(PROJECT_ROOT)!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["link", "path"])
def test_a_model_that_uses_the_checkouts_transxnet_is_refused(tmp_path, monkeypatch, how):
    offer_checkout(tmp_path / "offered", monkeypatch, how)
    model = save(tmp_path, code_paths=[])
    with pytest.raises(TrackingError, match=r"did not bring its own transxnet: it used .*transxnet/__init__\.py"):
        verify(model, new_store(tmp_path), CARD, [(b"image", "n")])


@pytest.mark.thorough
def test_a_model_with_its_own_transxnet_is_accepted_beside_the_checkout(tmp_path, monkeypatch):
    offer_checkout(tmp_path / "offered", monkeypatch, "path")
    model = save(tmp_path, code_paths=[str(PROJECT_ROOT / "transxnet")])
    assert verify(model, new_store(tmp_path), CARD, [(b"image", "n")]).share == 1


def test_the_tolerance_detects_a_wrong_preprocessing():
    card = dataclasses.replace(CARD, scores={"top1": 0.8})
    assert tolerance(dataclasses.replace(card, validation_samples=64), 64) == pytest.approx(1 / 64)
    assert 0.1 < tolerance(dataclasses.replace(card, validation_samples=50_000), 64) < 0.25
