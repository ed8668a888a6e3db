"""A published folder: read by timm and by this project, described for people."""

import json
import os
import re
import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import transxnet
import transxnet.timm  # noqa: F401 (registers the names)
from pipeline.common.cli import exit_status
from pipeline.publish.command import main
from pipeline.weights.load import load_model
from tests.support import REPOSITORY
from tests.support.hub_server import TOKEN, serve_hub
from tests.support.tracking_runs import finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    run_dir = tmp_path_factory.mktemp("runs") / "mine"
    finished_run(run_dir, digits, None)
    return run_dir


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "digits"
    assert main(str(run), to=str(folder)) == 0
    return folder


def test_timm_and_this_project_read_the_folder_with_equal_logits(run, folder):
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = load_model(str(run)).network(images)
        by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(by_timm(images), expected)
        assert torch.equal(load_model(str(folder / "model.safetensors")).network(images), expected)
        assert torch.equal(transxnet.transxnet_n(pretrained=folder / "model.safetensors").eval()(images), expected)
    assert resolve_model_data_config(by_timm)["input_size"] == [3, 32, 32]
    assert resolve_model_data_config(by_timm)["crop_pct"] == 1.0
    assert by_timm.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)(images).shape == (3, 3)


def test_the_page_says_what_it_is_and_how_to_load_it(run, folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert f"| top-1 | {100 * card['top1']:.2f} % |" in page
    assert "| validation images | 360 |" in page
    assert card["validation_digest"][:16] in page
    assert "license: other  # fill in" in page
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["command"] in page
    assert "transxnet.transxnet_n(pretrained=" in page
    assert "FOLDER is the folder of this page. Once it is on the hub, write `hf-hub:USER/NAME`" in page


@pytest.mark.thorough
def test_the_page_shows_what_the_model_sees(run, digits, tmp_path):
    shard = next(digits.glob("*-validation-*.tar"))
    assert main(str(run), to=str(tmp_path / "model"), images=(str(shard),)) == 0
    page = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    links = re.findall(r"^!\[.+\]\((\S+)\)$", page, re.MULTILINE)
    assert links == [f"pictures/{name}.png" for name in ("grad_cam", "receptive_field", "kernels")]
    assert all((tmp_path / "model" / link).is_file() for link in links)


def test_a_license_is_written_into_the_header(run, tmp_path):
    assert main(str(run), to=str(tmp_path / "licensed"), license="mit") == 0
    assert "\nlicense: mit\n" in (tmp_path / "licensed/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("s3://bucket/model", "give a new folder, or hf://USER/NAME"),
        ("hf://name", "a repository of the hub is hf://USER/NAME"),
        ("{folder}", "exists and is not empty: give a new folder"),
    ],
)
def test_a_wrong_place_is_one_line(run, folder, to, words, capsys):
    assert exit_status(lambda: main(str(run), to=to.format(folder=folder))) == 1
    assert words in capsys.readouterr().err


BY_HUB = """
import sys, timm, torch, transxnet.timm
from pipeline.publish.command import main
from pipeline.weights.load import load_model
run, shard = sys.argv[1:]
assert main(run, to="hf://me/digits", images=(shard,)) == 0
images = torch.full((2, 3, 32, 32), 0.5)
model = timm.create_model("hf-hub:me/digits", pretrained=True).eval()
assert torch.equal(model(images), load_model(run).network(images))
"""


@pytest.mark.thorough
def test_a_model_goes_to_the_hub_and_comes_back_the_same(run, digits, tmp_path):
    """The client reads its addresses when it is imported: a process of its own, which compares both models, because
    another process may compute with another number of threads and round differently."""
    shard = next(digits.glob("*-validation-*.tar"))
    with serve_hub() as hub:
        own = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        words = [sys.executable, "-c", BY_HUB, str(run), str(shard)]
        environment = {**os.environ, **own, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.commits == ["Add model"]
    assert {"README.md", "config.json", "model.json", "model.safetensors", "pictures/grad_cam.png"} <= set(
        hub.repositories["me/digits"]
    )
    assert f"published {run} at {hub.address}/me/digits" in done.stdout
    assert 'timm.create_model("hf-hub:me/digits", pretrained=True)' in done.stdout


def test_a_hub_that_does_not_answer_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    assert exit_status(lambda: main(str(run), to="hf://me/digits")) == 1
    error = capsys.readouterr().err
    assert "me/digits could not be uploaded to http://127.0.0.1:9" in error
    assert error.count("\n") == 1


def test_a_failure_leaves_no_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.publish.folder.write_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(str(run), to=str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []
