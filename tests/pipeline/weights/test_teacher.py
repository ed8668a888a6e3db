"""Which models can teach, and how a teacher is known again."""

import json
from pathlib import Path

import pytest
import timm
import torch

import transxnet
from pipeline.config.schema import ConfigError
from pipeline.weights.teacher import load_teacher, record_teacher

CLASSES = [f"n{label:08d}" for label in range(5)]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that timm has written, with a small ResNet of five classes."""
    folder = tmp_path_factory.mktemp("timm") / "resnet"
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(
        network,
        folder,
        model_config={"label_names": CLASSES},
        data_config={"mean": (0.5, 0.5, 0.5)},
        safe_serialization=True,
    )
    return f"timm:local-dir:{folder}"


def write_nano(path: Path, num_classes: int = 5) -> str:
    torch.save({"state_dict": transxnet.transxnet_n(image_size=32, num_classes=num_classes).state_dict()}, path)
    return str(path)


def test_a_model_of_timm_teaches_in_evaluation_mode_and_is_known_by_its_weights(resnet):
    random_state = torch.get_rng_state()
    teacher = load_teacher(resnet, CLASSES, 32)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (teacher.name, teacher.num_classes, teacher.classes) == ("test_resnet", 5, tuple(CLASSES))
    assert teacher.mean == (0.5, 0.5, 0.5)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert load_teacher(resnet, CLASSES, 32).digest == teacher.digest


@pytest.mark.parametrize(
    ("source", "classes", "size", "words"),
    [
        ("{resnet}", CLASSES[:4], 32, "test_resnet tells 5 classes apart, and the shards have 4"),
        (
            "{resnet}",
            [*CLASSES[1:], CLASSES[0]],
            32,
            "class 0 is n00000000 to test_resnet, and n00000001 in the shards",
        ),
        ("timm:transxnet_x", CLASSES, 32, "timm has no such model; it has"),
        ("timm:local-dir:{tmp}/none", CLASSES, 32, "none"),
        ("{tmp}/cut.pth", CLASSES, 32, "cut.pth"),
        ("{tmp}/none", CLASSES, 32, "is no run directory, models:/ URI or file of weights"),
        ("{tmp}/three.pth", CLASSES, 32, "transxnet_n tells 3 classes apart, and the shards have 5"),
    ],
)
def test_a_model_that_cannot_teach_is_one_line(source, classes, size, words, resnet, tmp_path):
    write_nano(tmp_path / "three.pth", 3)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "three.pth").read_bytes()[:-10000])
    with pytest.raises(ConfigError) as refusal:
        load_teacher(source.format(resnet=resnet, tmp=tmp_path), classes, size)
    assert str(refusal.value).startswith("--train.distill ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_of_one_size_of_images_is_refused_for_another(tmp_path):
    folder = tmp_path / "vit"
    timm.models.save_for_hf(
        timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=1, num_classes=5),
        folder,
        safe_serialization=True,
    )
    with pytest.raises(ConfigError, match="takes no images of 32 px: "):
        load_teacher(f"timm:local-dir:{folder}", CLASSES, 32)


def test_a_run_knows_the_teacher_that_it_began_with(tmp_path):
    torch.manual_seed(0)
    source = write_nano(tmp_path / "teacher.pth")
    first = load_teacher(source, CLASSES, 32)
    record_teacher(tmp_path, first)
    recorded = json.loads((tmp_path / "teacher.json").read_text(encoding="utf-8"))
    assert recorded == {"source": source, "name": "transxnet_n", "num_classes": 5, "digest": first.digest}
    record_teacher(tmp_path, load_teacher(source, CLASSES, 32))
    write_nano(tmp_path / "teacher.pth")
    with pytest.raises(ConfigError, match="its weights have changed since this run began"):
        record_teacher(tmp_path, load_teacher(source, CLASSES, 32))
