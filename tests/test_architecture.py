"""Rules that are executed: who may import whom, how long a file may be, which flags there are, how fast --help is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "transxnet", "jobs", "sharding")
LONGEST = 350


def test_import_contract_holds():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_readable(package: str):
    long = {str(p): n for p in (ROOT / package).rglob("*.py") if (n := len(p.read_text().splitlines())) > LONGEST}
    assert not long, f"split these by responsibility: {long}"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_explained(package: str):
    bare = []
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        nodes = [tree, *(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef))]
        bare += [
            f"{path}:{getattr(n, 'name', 'module')}"
            for n in nodes
            if not getattr(n, "name", "").startswith("_") and not ast.get_docstring(n)
        ]
    assert not bare


def test_the_top_level_is_the_fixed_one():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {name for name in top if not name.startswith(".")} <= {*PACKAGES, "tests", "pyproject.toml", "README.md"}
    assert "uv.lock" not in top


def test_the_contract_of_flags_is_kept():
    command = [sys.executable, "-m", "pipeline.launch", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"--[a-z][a-z0-9.-]*", text))
    assert "--partition STR" in text
    assert not re.search(r"\{None\}|\(default: \)|\n\n\n", text)
    launch = (
        "recipe cluster nodes tasks-per-node gpus-per-node cpus-per-task mem-gb timeout-min partition account qos "
        "constraint run-dir wait no-wait dry-run"
    )
    train = (
        "seed epochs steps zero-stage precision global-batch-size micro-batch-size save-every-steps eval-every-steps "
        "data.shards data.validation-shards data.workers audit-samples"
    )
    wanted = {f"--{name}" for name in launch.split()} | {f"--train.{name}" for name in train.split()}
    assert wanted <= flags


HEAVY = {"torch", "deepspeed", "mlflow", "timm", "pyarrow", "numpy", "submitit"}


@pytest.mark.parametrize(
    "module",
    ["pipeline.launch", "pipeline.status", "pipeline.evaluate", "pipeline.register", "sharding.build"],
)
def test_help_waits_for_nothing_heavy(module: str):
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage" in done.stdout
    assert module.startswith("sharding") or "{None}" not in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & HEAVY
