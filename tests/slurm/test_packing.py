"""`sharding.build` on a real Slurm writes the same bytes as on one machine."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """240 small JPEGs of noise in class folders, enough for several shards."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(240):
        path = folder / "train" / f"n{number % 4:08d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(path, quality=95)
    return folder


def build(source: Path, output: Path) -> list[str]:
    options = ["--source", str(source), "--output", str(output), "--split", "train", "--shard-mb", "1"]
    return [sys.executable, "-m", "sharding.build", *options, "--workers", "1"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone") / "shards"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    subprocess.run(build(source, output), env=environment, cwd=REPOSITORY, check=True, capture_output=True)
    assert sum(name.endswith(".tar") for name in digests(output)) >= 4
    return digests(output)


@pytest.mark.parametrize("launcher", ["srun", "array"])
def test_four_tasks_write_the_same_bytes_as_one_process(slurm, source, expected, tmp_path, launcher):
    output = tmp_path / "shards"
    command = " ".join(build(source, output))
    log = ["-o", f"{tmp_path}/%j_%a.log", "--chdir", str(REPOSITORY)]
    if launcher == "srun":
        slurm.run("sbatch", *log, "-N4", "--ntasks-per-node=1", "--wrap", f"srun {command}")
    else:
        slurm.run("sbatch", *log, "--array=0-3", "--wrap", command)
    deadline = time.monotonic() + 120
    while slurm.run("squeue", "-h", "-o", "%i").strip():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert digests(output) == expected, logs
