"""Trained weights from files and runs: loaded as they are or refused with a reason, without executing pickles."""

import inspect
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import transxnet

SMALL = {"image_size": 32, "backend": "reference"}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network = transxnet.transxnet_n(num_classes=7, **SMALL)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    return network.state_dict()


@pytest.fixture(scope="module")
def run_dir(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "export").mkdir()
    save_file(transxnet.to_upstream(trained), folder / "export/model.safetensors")
    return folder


def same(state, expected) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_run_an_exported_file_and_a_published_file_load_alike(trained, run_dir, tmp_path):
    published = {f"module.{name}": value for name, value in transxnet.to_upstream(trained).items()}
    torch.save({"epoch": 3, "state_dict": {}, "state_dict_ema": published}, tmp_path / "published.pth.tar")
    torch.save(transxnet.to_upstream(trained), tmp_path / "plain.pt")
    for source in (
        run_dir,
        str(run_dir / "export/model.safetensors"),
        tmp_path / "published.pth.tar",
        tmp_path / "plain.pt",
    ):
        # No classes and no image size are passed, so those of the weights are used.
        network = transxnet.transxnet_n(pretrained=source, backend="reference")
        assert same(network.state_dict(), trained)
        assert (network.config.num_classes, network.config.image_size) == (7, 32)


def test_defaults_are_those_of_imagenet(trained):
    signature = inspect.signature(transxnet.transxnet_t).parameters
    assert (signature["num_classes"].default, signature["image_size"].default) == (1000, 224)
    assert type(transxnet.transxnet_n(backend="reference").config.num_classes) is int


def test_other_classes_get_a_new_classifier_and_other_sizes_resized_tables(trained, run_dir):
    torch.manual_seed(1)
    network = transxnet.transxnet_n(num_classes=3, image_size=64, pretrained=run_dir, backend="reference")
    state = network.state_dict()
    changed = {name for name, value in trained.items() if state[name].shape != value.shape}
    heads = {"classifier.linear.weight", "classifier.linear.bias"}
    assert changed == heads | {f"stages.{k}.position_bias.table" for k in range(4)}
    assert not state["classifier.linear.bias"].any()
    assert 0.1 < state["stages.0.position_bias.table"].mean() < 1
    kept = trained.keys() - changed
    assert same({name: state[name] for name in kept}, {name: trained[name] for name in kept})


class HostilePickle:
    """A hostile pickle: unpickling runs a shell command."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def test_unusable_weights_are_refused_with_a_reason(trained, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": HostilePickle()}, "hostile.pth")
    Path("cut.safetensors").write_bytes((run_dir / "export/model.safetensors").read_bytes()[:1000])
    for empty in ("notes.txt", "empty.pth"):
        Path(empty).write_text("", encoding="utf-8")
    for source, message in {
        "nowhere": "nowhere holds no weights: nowhere does not exist",
        str(tmp_path): "model.safetensors does not exist",
        "notes.txt": "notes.txt is not a file of weights",
        "hostile.pth": "hostile.pth holds no weights that can be read safely",
        "empty.pth": "empty.pth holds no weights that can be read safely: its reader ended with EOFError",
        "cut.safetensors": "cut.safetensors holds no weights that can be read safely",
    }.items():
        with pytest.raises(ValueError, match=r"weights|exist") as caught:
            transxnet.transxnet_n(pretrained=source)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()
    with pytest.raises(ValueError, match=r"holds transxnet_n, not transxnet_t$"):
        transxnet.transxnet_t(pretrained=run_dir)
    less = {name: value for name, value in trained.items() if "stages.1" not in name}
    with pytest.raises(ValueError, match=r"another variant"):
        transxnet.load_weights(transxnet.transxnet_n(**SMALL), less)


def test_a_registry_uri_without_mlflow_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with pytest.raises(ImportError, match="fetched by MLflow, which is not installed: pip install mlflow"):
        transxnet.transxnet_n(pretrained="models:/transxnet_n@champion")
