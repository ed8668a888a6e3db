"""Trained weights from files and runs: loaded as they are or refused with a reason, without executing pickles."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import transxnet
from tests.transxnet.fixtures import images
from transxnet.backbone import Backbone, initialise
from transxnet.weights_entries import choose_weights

REFERENCE = Path(__file__).parents[2] / "../shared/reference"
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


def test_unusable_weights_are_refused_with_a_reason(trained, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("", encoding="utf-8")
    for source, message in {
        "nowhere": "nowhere holds no weights: nowhere does not exist",
        str(tmp_path): "model.safetensors does not exist; a training writes it when it ends",
        "notes.txt": "notes.txt is not a file of weights",
    }.items():
        with pytest.raises(ValueError, match=r"weights|exist") as caught:
            transxnet.transxnet_n(pretrained=source)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"holds transxnet_n, not transxnet_t$"):
        transxnet.transxnet_t(pretrained=run_dir)
    less = {name: value for name, value in trained.items() if "stages.1" not in name}
    with pytest.raises(ValueError, match=r"another variant"):
        transxnet.load_weights(transxnet.transxnet_n(**SMALL), less)


@pytest.mark.parametrize("stages", [pytest.param((0, 1, 2, 3), marks=pytest.mark.thorough), (1, 2, 3)])
def test_the_backbone_of_a_dense_file_loads_with_its_norms(stages, tmp_path):
    """The file as mmcv writes it; RetinaNet, which does not use the first map, has no norm on it."""
    torch.manual_seed(0)
    backbone = Backbone(transxnet.config_for("transxnet_n", image_size=32), stages).apply(initialise)
    state = {f"backbone.{name}": value for name, value in transxnet.to_upstream(backbone.state_dict()).items()}
    for name, value in state.items():
        if name.startswith("backbone.norm"):
            value.uniform_(0.5, 2)
    state |= {"neck.lateral_convs.0.conv.weight": torch.ones(3), "bbox_head.retina_cls.bias": torch.ones(3)}
    meta = {"mmdet_version": "2.28.2", "CLASSES": ("person",), "PALETTE": [(220, 20, 60)], "epoch": 12}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {}}, tmp_path / "epoch_12.pth")
    x = images(2, 64)
    normed = transxnet.transxnet_n(pretrained=tmp_path / "epoch_12.pth", out_norms=True).eval()
    plain = transxnet.transxnet_n(pretrained=tmp_path / "epoch_12.pth").eval()
    with torch.no_grad():
        assert all(map(torch.equal, normed.forward_features(x), backbone.eval().forward_features(x)))
        assert all(map(torch.equal, plain.forward_features(x), backbone.stage_maps(x)))
    # A classifier's weights for a dense network: its norms begin as upstream's.
    torch.save(transxnet.to_upstream(plain.state_dict()), tmp_path / "classifier.pth")
    fresh = transxnet.transxnet_n(pretrained=tmp_path / "classifier.pth", out_norms=True)
    assert fresh.config.out_norms is True
    assert all((norm.weight == 1).all() for norm in fresh.out_norms)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference values are not at ../shared/reference")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem.endswith("_t") else pytest.mark.thorough)
        for path in sorted(REFERENCE.glob("dense_keys_*.json"))
    ],
)
def test_each_published_dense_file_gives_its_backbone_strictly(path: Path):
    published = json.loads(path.read_text(encoding="utf-8"))["keys"]
    content = {"state_dict": {name: torch.empty(shape, device="meta") for name, (shape, _, _) in published.items()}}
    weights = choose_weights(content)
    config = transxnet.config_of_weights(weights.state)
    assert config.name == f"transxnet_{path.stem[-1]}"
    assert config.out_norms == ((1, 2, 3) if "retinanet" in path.stem else (0, 1, 2, 3))
    with torch.device("meta"):
        model = transxnet.build(config.name, out_norms=config.out_norms)
    assert transxnet.fit_weights(model, weights.state)[1] == ["classifier initialised afresh (not in the weights)"]
    taken = sum(name.startswith("backbone.") for name in published)
    assert len(weights.state) == taken


def test_a_registry_uri_without_mlflow_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with pytest.raises(ImportError, match="fetched by MLflow, which is not installed: pip install mlflow"):
        transxnet.transxnet_n(pretrained="models:/transxnet_n@champion")
