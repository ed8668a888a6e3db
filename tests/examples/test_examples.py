"""The examples run as their first lines say, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import REPOSITORY

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images of each of two classes, in which the examples run."""
    folder = tmp_path_factory.mktemp("examples")
    generator = np.random.default_rng(0)
    for number in range(6):
        path = folder / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return folder


def run(folder: Path, name: str, *arguments: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SLURM_", "SUBMITIT_"))}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(name), *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_pack_writes_shards_of_the_images(workplace: Path):
    lines = run(workplace, "pack.py", "images")
    assert lines[-2:] == ["6 images in 1 shards; classes:", "cat, dog"]
    assert (workplace / "shards/pets-train.json").exists()


@pytest.mark.thorough
def test_train_registers_a_model(workplace: Path):
    lines = run(workplace, "train.py")
    assert lines[-1] == "finished: runs/example/export/model.safetensors"
    assert any("step 8/8" in line for line in lines)
    assert (workplace / "runs/example/registered.json").exists()


def test_run_function_runs_in_two_processes(workplace: Path):
    state, *ranks = run(workplace, "run_function.py")
    assert state.strip() == "finished"
    assert [line.split(":")[0] for line in ranks] == ["rank 0 of 2", "rank 1 of 2"]
    assert sum(int(line.split(": ")[1]) for line in ranks) == sum(number**2 for number in range(1_000_000))


@pytest.mark.thorough
def test_backbone_has_four_maps(workplace: Path):
    lines = run(workplace, "backbone.py")
    assert lines[0] == "stride  4: 48 channels, [2, 48, 24, 32]"
    assert len(lines) == 4
