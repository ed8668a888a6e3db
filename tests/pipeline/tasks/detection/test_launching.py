"""What a launch of a detection refuses before anything is queued, in one line."""

import pytest
import torch

import transxnet
from pipeline.launch.command import main
from tests.support.label_maps import pack_masks
from tests.support.objects import pack_objects
from tests.support.small_shards import pack
from transxnet import dense

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Shards of each task, and files of weights."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("labels", "maps", "objects"):
        (folder / name).mkdir()
    pack(folder / "labels", (6,))
    pack(folder / "labels", (4,), split="validation")
    pack_masks(folder / "maps")
    pack_objects(folder / "objects")
    networks = {
        "semantic_fpn": dense.semantic_fpn("n", 3, image_size=64),
        "retinanet": dense.retinanet("n", 3, image_size=64),
    }
    for name, network in networks.items():
        torch.save({"state_dict": dense.to_upstream(network.state_dict())}, folder / f"{name}.pth")
    other = transxnet.transxnet_t(num_classes=3, image_size=64)
    torch.save(transxnet.to_upstream(other.state_dict()), folder / "t.pth")
    return folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["demo_detection", "--train.data.shards", "{}/labels"],
            "small-train was packed for classification, and this training is a detection: name other shards, or take "
            "a recipe of classification",
        ),
        (
            ["demo_detection", "--train.data.shards", "{}/maps/shards"],
            "small-train was packed for segmentation, and this training is a detection",
        ),
        (
            ["demo", "--train.data.shards", "{}/objects/shards"],
            "small-train was packed for detection, and this training is a classification",
        ),
        (
            ["demo_segmentation", "--train.data.shards", "{}/objects/shards"],
            "small-train was packed for detection, and this training is a segmentation",
        ),
        (["demo_detection", "--train.model.name", "semantic_fpn_n"], "semantic_fpn_n detects no objects"),
        (["demo", "--train.model.name", "mask_rcnn_n"], "mask_rcnn_n classifies no images"),
        (["demo_detection", "--train.mix.mixup", "0.8"], "boxes cannot be mixed"),
        (
            ["demo_detection", "--train.initialise-from", "{}/semantic_fpn.pth"],
            "it holds a network of another task, with decode_head: a detection starts from",
        ),
        (
            ["demo_detection", "--train.initialise-from", "{}/t.pth"],
            "weights of transxnet_t, and this run trains mask_rcnn_n",
        ),
    ],
    ids=lambda value: value[-1].rpartition("/")[2] if isinstance(value, list) else "",
)
def test_a_wrong_detection_is_one_line(packed, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--recipe", *(flag.format(packed) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_a_mask_rcnn_starts_from_the_backbone_of_a_retinanet(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe", "demo_detection", "--dry-run", "--train.initialise-from", f"{packed}/retinanet.pth"]
    assert main(flags) == 0
    assert f"{packed}/retinanet.pth" in capsys.readouterr().out
