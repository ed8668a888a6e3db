"""Libraries that build encoders by timm's names train a step of TransXNet, installed in an environment of their own."""

import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from pipeline.publish import publish
from tests.support import REPOSITORY
from tests.support.tracking_runs import finished_run

LIBRARIES = ["segmentation-models-pytorch", "transformers", "timm", "torch", "safetensors", "numpy"]

PROGRAM = """
import sys

import segmentation_models_pytorch as smp
import timm
import torch
import transxnet.timm
from transformers import TimmBackbone, TimmBackboneConfig, TimmWrapperForImageClassification

def step(model, loss):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))

images = torch.randn(2, 3, 64, 64)
unet = smp.Unet("tu-transxnet_t", encoder_weights=None, classes=3)
masks = unet(images)
assert masks.shape == (2, 3, 64, 64)
step(unet, masks.square().mean())

settings = TimmBackboneConfig(backbone="transxnet_t", use_pretrained_backbone=False, out_indices=(0, 1, 2, 3))
backbone = TimmBackbone(settings)
maps = backbone(images).feature_maps
assert [tuple(each.shape[1:]) for each in maps] == [(48, 16, 16), (96, 8, 8), (224, 4, 4), (448, 2, 2)]
step(backbone, sum(each.square().mean() for each in maps))
print("both trained")

small = torch.randn(2, 3, 32, 32)
by_timm = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
by_transformers = TimmWrapperForImageClassification.from_pretrained(sys.argv[1]).eval()
assert torch.equal(by_timm(small), by_transformers(pixel_values=small).logits)
assert list(by_transformers.config.id2label.values()) == [str(digit) for digit in range(10)]
print("both read what was published")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_segmentation_models_and_transformers_train_a_step_and_read_a_published_model(tmp_path: Path):
    finished_run(tmp_path / "run", tmp_path / "shards", None)
    publish(str(tmp_path / "run"), tmp_path / "published")
    uv = shutil.which("uv")
    assert uv is not None, "this test installs libraries with uv"
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", tmp_path / "env"], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *LIBRARIES], check=True)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "transxnet").symlink_to(REPOSITORY / "transxnet")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "path")}
    program = textwrap.dedent(PROGRAM)
    done = subprocess.run(
        [python, "-c", program, tmp_path / "published"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["both trained", "both read what was published"], done.stderr[-3000:]
