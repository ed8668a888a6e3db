"""What a launch of a segmentation shows, and refuses before anything is queued."""

import json

import pytest
import torch

import transxnet
from pipeline.launch.command import main
from tests.support.label_maps import pack_masks
from tests.support.small_shards import pack
from transxnet import dense


def test_a_dry_run_of_a_sweep_shows_every_training_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe", "demo_segmentation", "--cluster", "slurm", "--gpus-per-node", "2", "--dry-run"]
    assert main([*flags, "--sweep", "train.optimizer.lr=1e-3,2e-3", "--run-dir", "sweep"]) == 0
    shown = capsys.readouterr().out
    for value in (0.001, 0.002):
        _, _, after = shown.partition(f"# {tmp_path}/sweep/lr={value}/config.json\n")
        train = json.JSONDecoder().raw_decode(after)[0]["train"]
        assert (train["task"], train["model"]["name"]) == ("segmentation", "semantic_fpn_n")
        assert train["optimizer"]["lr"] == value
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Shards of a segmentation and of a classification, and files of weights."""
    folder = tmp_path_factory.mktemp("packed")
    pack_masks(folder)
    (folder / "labels").mkdir()
    pack(folder / "labels", (6,))
    pack(folder / "labels", (4,), split="validation")
    tiny = {"num_classes": 3, "image_size": 64}
    for name, network in {
        "retinanet": dense.retinanet("n", 3, image_size=64),
        "mask_rcnn": dense.mask_rcnn("n", 3, image_size=64),
        "semantic_fpn": dense.semantic_fpn("n", 3, image_size=64),
    }.items():
        torch.save({"state_dict": dense.to_upstream(network.state_dict())}, folder / f"{name}.pth")
    for name, network in {"n": transxnet.transxnet_n(**tiny), "t": transxnet.transxnet_t(**tiny)}.items():
        torch.save(transxnet.to_upstream(network.state_dict()), folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["demo_segmentation", "--train.data.shards", "{}/labels"],
            "small-train was packed for classification, and this training is a segmentation: name other shards, or "
            "take a recipe of classification",
        ),
        (
            ["demo", "--train.data.shards", "{}/shards"],
            "small-train was packed for segmentation, and this training is a classification",
        ),
        (["demo_segmentation", "--train.model.name", "transxnet_n"], "transxnet_n segments no images"),
        (["demo", "--train.model.name", "semantic_fpn_n"], "semantic_fpn_n classifies no images"),
        (["demo_segmentation", "--train.mix.mixup", "0.8"], "label maps cannot be mixed"),
        (
            ["demo_segmentation", "--train.initialise-from", "{}/retinanet.pth"],
            "it holds a network of another task, with bbox_head: a segmentation starts from",
        ),
        (
            ["demo_segmentation", "--train.initialise-from", "{}/mask_rcnn.pth"],
            "it holds a network of another task, with roi_head and rpn_head",
        ),
        (
            ["demo_segmentation", "--train.initialise-from", "{}/t.pth"],
            "weights of transxnet_t, and this run trains semantic_fpn_n",
        ),
    ],
    ids=lambda value: value[-1].rpartition("/")[2] if isinstance(value, list) else "",
)
def test_a_wrong_segmentation_is_one_line(packed, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--recipe", *(flag.format(packed) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["n", "semantic_fpn"])
def test_a_segmentation_starts_from_a_classifier_or_its_own_network(packed, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe", "demo_segmentation", "--dry-run", "--train.initialise-from", f"{packed}/{name}.pth"]
    assert main(flags) == 0
    assert f"{packed}/{name}.pth" in capsys.readouterr().out
