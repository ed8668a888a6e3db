"""Pictures of what a model sees: from images and shards, of each task, on a page and in MLflow."""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import transxnet
from pipeline.common.cli import exit_status
from pipeline.look.command import main
from pipeline.look.gallery import draw_pictures, write_picture
from pipeline.look.images import choose_images
from pipeline.look.pictures import side_of_half, varying_channels
from pipeline.tasks import find_task
from pipeline.tasks.segmentation.picture import palette
from pipeline.tracking.client import open_client
from pipeline.weights.card import ModelCard, Preprocessing, load_model_card, save_model_card
from tests.support.small_shards import pack, photograph
from tests.support.tracking_runs import finished_run, new_store

DRAWN = ["grad_cam", "receptive_field", "kernels", "attention"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(photograph(number, 70, 60))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "transxnet_n.pth"
    torch.manual_seed(0)
    torch.save({"state_dict": transxnet.transxnet_n(image_size=64, num_classes=3).state_dict()}, path)
    return str(path)


def test_a_classifier_is_drawn_on_a_page(weights, folder, tmp_path, capsys):
    assert main(weights, images=(str(folder),), to=tmp_path / "look", count=2, position=(0.0, 1.0)) == 0
    page = (tmp_path / "look/index.html").read_text(encoding="utf-8")
    for name in DRAWN:
        with Image.open(tmp_path / f"look/{name}.png") as picture:
            assert len(np.unique(np.asarray(picture))) > 20
        assert f'src="{name}.png"' in page
    assert "4 pictures of 2 images" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["semantic_fpn_n", "mask_rcnn_n"])
def test_answers_with_a_place_are_drawn_over_the_images(name, folder, tmp_path):
    task = find_task("segmentation" if name.startswith("semantic") else "detection")
    torch.manual_seed(0)
    network = task.build(name, num_classes=3, image_size=64, backend="reference").eval()
    prepared = Preprocessing(
        evaluation_crop=1.0, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bilinear", scale=(96, 64), divisor=32
    )
    card = ModelCard(
        name=name,
        task=task.name,
        num_classes=3,
        image_size=64,
        classes=tuple((f"{k}", f"thing {k}") for k in range(3)),
        preprocessing=prepared,
        step=1,
        epoch=1.0,
    )
    images = choose_images([str(folder)], 1)
    first, *rest = draw_pictures(network, card, images, (0.5, 0.5))
    assert first.name == "answers"
    assert [picture.name for picture in rest] == DRAWN[1:]
    assert first.content.shape[1] > 480
    write_picture(tmp_path / "answers.png", first)


def test_a_segmentation_is_coloured_by_its_classes():
    task = find_task("segmentation")
    network = task.build("semantic_fpn_n", num_classes=2, image_size=64, backend="reference").eval()
    classifier = network.get_submodule("head.classifier")
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor([0.0, 9.0]))
    prepared = Preprocessing(evaluation_crop=1.0, mean=(0.5,) * 3, std=(0.2,) * 3, scale=(96, 64), divisor=32)
    gray = np.full((40, 60, 3), 100, np.uint8)
    drawn = task.overlay(network, prepared, ["sky", "ground"], gray)
    assert drawn.shape == (320, 480, 3)
    assert drawn[5, 5].tolist() == [round(0.45 * 100 + 0.55 * part) for part in palette(2)[1].tolist()]
    assert len(np.unique(drawn[120:200, 180:300].reshape(-1, 3), axis=0)) > 1, "the class is named in the middle"


def test_images_are_spread_over_folders_and_shards(folder, tmp_path):
    pack(tmp_path, (9,))
    shard = tmp_path / "small-train-0000.tar"
    names = [image.name for image in choose_images([str(shard)], 3)]
    assert names == ["photo_00000.jpg", "photo_00003.jpg", "photo_00006.jpg"]
    assert [image.name for image in choose_images([str(folder), str(shard)], 2)] == ["0.jpg", "photo_00002.jpg"]
    [one] = choose_images([str(folder / "4.jpg")], 5)
    assert one.pixels.shape == (70, 60, 3)


def test_the_channels_that_differ_most_are_drawn():
    made = np.ones((2, 6, 3, 3), np.float32)
    made[1, [1, 3]] = 2
    assert {1, 3} <= set(varying_channels(made))
    field = np.zeros((9, 9))
    field[4, 4], field[0, 0] = 3, 2
    assert side_of_half(field, 4) == 1
    field[0, 0] = 4
    assert side_of_half(field, 4) == 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": ("none",)}, "--images none does not exist: give image files, folders with images, or shards"),
        ({"images": ("{folder}/empty",)}, "empty has no image (.jpeg, .jpg"),
        ({"images": ("{folder}/text.jpg",)}, "--images: text.jpg cannot be decoded"),
        ({"images": ("{folder}/bad.tar",)}, "bad.tar is no shard"),
        ({"count": 0}, "--count 0: look at one image at least"),
        ({"position": (0.5, 1.5)}, "--position 0.5 1.5: give two shares from 0 to 1"),
        ({"to": "{folder}"}, "exists and is not empty: give a new folder"),
        ({"log_to_mlflow": True}, "names no MLflow run that it came from: leave it out"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(changes, words, weights, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("text", encoding="utf-8")
    (tmp_path / "bad.tar").write_text("text", encoding="utf-8")
    filled = {
        key: tuple(part.format(folder=tmp_path) for part in value) if key == "images" else value
        for key, value in changes.items()
    }
    if "to" in filled:
        filled["to"] = tmp_path
    given = {"images": (str(folder),), "to": tmp_path / "look"} | filled
    assert exit_status(lambda: main(weights, **given)) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "look").exists()


@pytest.mark.thorough
def test_the_pictures_are_logged_to_the_run_of_the_model(tmp_path, digits, folder, capsys):
    uri = new_store(tmp_path)
    client = open_client(uri)
    run = client.create_run("0")
    finished_run(tmp_path / "run", digits, uri)
    card = load_model_card(tmp_path / "run/export")
    save_model_card(dataclasses.replace(card, mlflow_run_id=run.info.run_id), tmp_path / "run/export")
    assert main(str(tmp_path / "run"), images=(str(folder),), to=tmp_path / "look", count=1, log_to_mlflow=True) == 0
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "look")}
    # Images of 32 px leave one key: an attention without a choice is not drawn.
    assert logged == {"look/index.html", *(f"look/{name}.png" for name in DRAWN if name != "attention")}


def test_a_shard_with_pictures_beside_other_members_is_read(tmp_path):
    """Members that are no images, such as label maps' tables, are passed over."""
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.cls", b"1"), ("a.jpg", photograph(3)), ("a.json", b"{}")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert [image.name for image in choose_images([str(path)], 5)] == ["a.jpg"]
