"""Evaluation reproduces the recorded accuracy, for every way to name a model and for other shards."""

import dataclasses
import json
import re
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import transxnet
from pipeline.common.cli import exit_status
from pipeline.config.schema import AugmentConfig, ConfigError
from pipeline.evaluate import progress as evaluate_progress
from pipeline.evaluate.command import main
from pipeline.evaluate.measure import evaluate
from pipeline.recipes.digits import write_class_folders
from pipeline.tasks.classification.accuracy import (
    Evaluation,
    count_batch,
    evaluate_batches,
    is_far_below_chance,
)
from pipeline.tasks.classification.classes import ClassMap, imagenet_classes, match_classes
from pipeline.tasks.classification.measure import ClassifierMeasurement
from pipeline.tracking.client import resolve_tracking_uri
from pipeline.weights.load import load_model
from sharding import load_manifest
from sharding.build import BuildOptions, build
from tests.support.tracking_runs import Pixels, finished_run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def card(home, digits):
    return finished_run(home / "runs/first", digits, resolve_tracking_uri(home))


def test_counts_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(97, 13), torch.randint(0, 13, (97,))
    logits[5] = torch.nan
    logits[6] = 0.0
    whole = count_batch(logits, labels)
    parts = sum(count_batch(a, b) for a, b in zip(logits.split(10), labels.split(10), strict=True))
    assert torch.equal(whole[:3], parts[:3])
    expected = (logits[:5].topk(5).indices == labels[:5, None]).sum()
    assert count_batch(logits[:5], labels[:5])[1] == expected
    # NaN scores are never right; of equal scores the lower class counts.
    assert count_batch(logits[5:6], labels[5:6])[:2].sum() == 0
    assert count_batch(logits[6:7], torch.tensor([0]))[0] == 1
    assert count_batch(logits[6:7], torch.tensor([1]))[0] == 0
    assert count_batch(logits[:2], torch.tensor([-1, 3]))[2] == 1


@pytest.mark.parametrize(
    ("top1", "samples", "classes", "is_far"),
    [
        (0.0, 64, 4, True),
        (0.0, 40, 4, False),
        (0.0, 50_000, 1000, True),
        (0.0003, 50_000, 1000, True),
        (0.0009, 50_000, 1000, False),
        (0.001, 50_000, 1000, False),
        (0.0, 250, 250, False),
        (0.0, 9, 1, False),
    ],
)
def test_a_top1_that_random_guesses_hardly_give_is_far_below_chance(top1, samples, classes, is_far):
    evaluation = Evaluation(top1=top1, top5=1.0, loss=1.0, samples=samples)
    assert is_far_below_chance(evaluation, classes) is is_far


def test_labels_beyond_the_model_are_refused():
    batch = Pixels(torch.zeros(2, 3, 4, 4), torch.tensor([0, 12]))
    with pytest.raises(ValueError, match="label 12, the model 10 classes"):
        evaluate_batches(
            lambda x: torch.zeros(len(x), 10),
            [batch],
            num_classes=10,
            device="cpu",
            autocast=nullcontext(),
            normalise=lambda b, d: b.images,
        )
    with pytest.raises(ValueError, match="nothing was evaluated"):
        Evaluation.from_counts(torch.zeros(4, dtype=torch.float64))


def test_calibration_and_confusion_by_hand():
    matched = ClassMap([0, 1], [0, 1], [("0", "zero"), ("1", "one")], 2)
    measured = ClassifierMeasurement(matched, AugmentConfig(), "cpu")
    # Ten answers at 90 % confidence, eight of them right: off by 0.1.
    logits = torch.log(torch.tensor([[0.9, 0.1]])).repeat(10, 1)
    measured.count(logits, torch.tensor([0] * 8 + [1] * 2))
    report = measured.result(seconds=2.0)
    assert report.calibration_error == pytest.approx(0.1, abs=1e-6)
    assert report.confusion.tolist() == [[8, 0], [2, 0]]
    assert report.class_accuracy.tolist() == [1.0, 0.0]
    assert report.top1 == 0.8
    assert report.mean_class_accuracy == 0.5
    assert report.confusions(5) == [(1, 0, 2)]
    assert report.images_per_s == 5


def test_other_shards_are_scored_among_their_own_classes(home, card, capsys, monkeypatch):
    """Shards as of ImageNet-A and -R: packed from class folders, with fewer classes and other labels."""
    monkeypatch.setattr(evaluate_progress, "LINE_EVERY_S", 0)
    write_class_folders(home / "folders")
    (home / "few").mkdir()
    for name in ("2", "7", "8"):
        (home / "folders/validation" / name).rename(home / "few" / name)
    build(
        BuildOptions(source=str(home / "few"), output=str(home / "a"), name="imagenet-a", split="validation", workers=1)
    )
    capsys.readouterr()
    answers = {}
    for subset in (True, False):
        arguments = {"shards": str(home / "a"), "subset": subset, "workers": 0, "output": home / "out.json"}
        assert main(str(home / "runs/first"), **arguments, no_log=True) == 0
        answers[subset] = json.loads((home / "out.json").read_text())
        said = capsys.readouterr()
        assert ("imagenet-a-validation, 88 images among 3 classes" in said.out) == subset
        lines = [line for line in said.err.splitlines() if line.startswith("image ")]
        assert re.fullmatch(r"image 88/88  images/s \d+  remaining 0:00", lines[-1])
    assert {entry["wnid"] for entry in answers[True]["classes"]} == {"2", "7", "8"}
    assert len(answers[False]["classes"]) == 10
    assert answers[True]["top1"] > answers[False]["top1"] > 0.5
    assert answers[True]["samples"] == sum(entry["samples"] for entry in answers[False]["classes"]) == 88


def test_classes_are_matched_by_name_or_number(digits, card):
    manifest = load_manifest(str(digits), "validation")
    few = dataclasses.replace(manifest, classes=(manifest.classes[7], manifest.classes[2]))
    matched = match_classes(card, few, subset=True)
    assert matched.outputs == [2, 7]
    assert matched.labels == [1, 0]
    everything = match_classes(card, few, subset=False)
    assert everything.outputs == list(range(10))
    assert everything.labels == [7, 2]
    # ImageNet-V2's class folders are named by class number.
    named = dataclasses.replace(card, classes=tuple((f"n{k:08d}", name) for k, (_, name) in enumerate(card.classes)))
    assert match_classes(named, few, subset=False).labels == [7, 2]
    unknown = dataclasses.replace(few.classes[0], wnid="n99999999")
    with pytest.raises(ConfigError, match="1 classes that transxnet_n was not trained on: n99999999"):
        match_classes(card, dataclasses.replace(few, classes=(unknown,)), subset=True)


def test_weights_without_a_card_are_identified_by_their_shapes(home, card, tmp_path):
    bare = tmp_path / "weights.safetensors"
    bare.write_bytes((home / "runs/first/export/model.safetensors").read_bytes())
    guessed = load_model(str(bare)).card
    assert (guessed.name, guessed.num_classes, guessed.image_size) == ("transxnet_n", 10, 32)
    assert not np.any([wnid for wnid, _ in guessed.classes])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere", "is no run directory, models:/ URI or file of weights"),
        (__file__, "is not a file of weights"),
    ],
)
def test_an_unusable_model_is_one_line(model, words, digits, capsys):
    assert exit_status(lambda: main(model, shards=str(digits))) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_negative_number_of_workers_is_refused(home, card, digits):
    with pytest.raises(ConfigError, match=r"data\.workers -1 must be 0 or more"):
        evaluate(load_model(str(home / "runs/first")), str(digits), workers=-1)


def test_a_missing_output_folder_is_an_error_before_the_evaluation(tmp_path, capsys):
    assert exit_status(lambda: main("nowhere", shards="shards", output=tmp_path / "gone/results.json")) == 1
    assert "results.json: there is no such folder" in capsys.readouterr().err


@pytest.mark.thorough
def test_weights_without_names_are_scored_on_a_part_of_imagenet(tmp_path, capsys):
    """A file of 1000 classes without a card, on a split of three of them, as `--subset` scores it."""
    names = dict(imagenet_classes())
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert names["n01440764"] == "tench, Tinca tinca"
    write_class_folders(tmp_path / "digits")
    wnids = ["n02123045", "n01440764", "n03028079"]
    for wnid, digit in zip(wnids, ("2", "7", "8"), strict=True):
        shutil.copytree(tmp_path / "digits/validation" / digit, tmp_path / "mine" / wnid)
    options = BuildOptions(source=str(tmp_path / "mine"), output=str(tmp_path / "s"), split="validation", workers=1)
    build(options)
    model = transxnet.transxnet_n(image_size=32)
    with torch.no_grad():
        model.classifier.linear.bias[list(names).index("n02123045")] += 100
    torch.save({"state_dict": transxnet.to_upstream(model.state_dict())}, tmp_path / "transxnet_n.pth")
    capsys.readouterr()
    arguments = {"shards": str(tmp_path / "s"), "workers": 0, "output": tmp_path / "out.json"}
    assert main(str(tmp_path / "transxnet_n.pth"), **arguments, subset=True) == 0
    assert "among 3 classes" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    scored = {entry["wnid"]: (entry["accuracy"], entry["name"]) for entry in result["classes"]}
    assert scored.keys() == set(wnids)
    assert scored["n02123045"] == (1, "tabby, tabby cat")
    assert scored["n01440764"][0] == 0
    assert main(str(tmp_path / "transxnet_n.pth"), **arguments) == 0
    assert "among" not in capsys.readouterr().out
    # ImageNet-V2's class folders are named by class number, in the order of their names.
    manifest = load_manifest(str(tmp_path / "s"), "validation")
    numbered = [dataclasses.replace(manifest.classes[0], wnid=str(number)) for number in (10, 2)]
    card = load_model(str(tmp_path / "transxnet_n.pth")).card
    matched = match_classes(card, dataclasses.replace(manifest, classes=tuple(numbered)), subset=False)
    assert matched.labels == [10, 2]
    # Another thousand of classes have their own order.
    other = [dataclasses.replace(manifest.classes[0], wnid=f"class {number}") for number in range(1000)]
    assert match_classes(card, dataclasses.replace(manifest, classes=tuple(other)), subset=False).labels[7] == 7
