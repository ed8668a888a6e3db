"""Rules that are executed: who may import whom, how long a file may be, which flags there are, how fast --help is."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "transxnet", "jobs", "sharding")
LONGEST = 350
WIDE = {**os.environ, "COLUMNS": "120"}


def test_import_contract_holds():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_tasks_name_their_metrics():
    files = [p for p in (ROOT / "pipeline").rglob("*.py") if "tasks" not in p.relative_to(ROOT).parts]
    named = {
        str(path): found for path in files if (found := re.findall(r"\b(?:eval_)?(?:top1|miou)\b", path.read_text()))
    }
    assert len(files) > 80
    assert not named, "ask the task for its primary metric (`pipeline.tasks.metric`)"


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


def opens_text_of_the_locale(call: ast.Call) -> bool:
    """Whether a call opens a text file, or reads a program's output, in the encoding that the environment names."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "open":
        is_function = isinstance(call.func, ast.Name)
        modes = [given.get("mode"), *call.args[1 if is_function else 0 :][:1]]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        is_text = (is_function and not texts) or any(set(text) <= set("rwax+t") for text in texts)
    else:
        # A function of our own that is called by its bare name opens the file itself.
        is_text = (name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)) or "text" in given
    return is_text and "encoding" not in given


@pytest.mark.parametrize("package", PACKAGES)
def test_no_text_depends_on_the_locale(package: str):
    """Ruff's PLW1514 does not see the type of most paths."""
    found = [
        f"{path}:{node.lineno}"
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_of_the_locale(node)
    ]
    assert not found, f'give these encoding="utf-8": {found}'


def test_the_top_level_is_the_fixed_one():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {name for name in top if not name.startswith(".")} <= {*PACKAGES, "tests", "pyproject.toml", "README.md"}
    assert "uv.lock" not in top


COMMANDS = (
    "pipeline.launch",
    "pipeline.doctor",
    "pipeline.evaluate",
    "pipeline.look",
    "pipeline.publish",
    "pipeline.register",
    "pipeline.status",
    "sharding.build",
    "sharding.verify",
    "sharding.index",
)
FLAGS = Path(__file__).with_name("flags.txt")
"""Every flag of every command, one a line after its command: a flag that is new, or gone, is a decision."""


@functools.cache
def help_of(command: str) -> tuple[str, set[str]]:
    """What a command's `--help` prints, and the modules that it imports for it."""
    run = [sys.executable, "-X", "importtime", "-m", command, "--help"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, env=WIDE)
    return done.stdout, {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}


def flags_of(command: str) -> list[str]:
    """The flags in the left column of a command's `--help`."""
    text, _ = help_of(command)
    assert command != "pipeline.launch" or not re.search(r"\{None\}|\(default: \)|\n\n\n", text)
    rows = re.findall(r"^[│ ]*((?:-{1,2}[a-z][\w.-]*.*))", text, re.MULTILINE)
    return sorted({flag for row in rows for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", row.split("  ")[0])})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_a_command_are_those_that_were_decided(command: str):
    decided = [line.split() for line in FLAGS.read_text().splitlines()]
    assert flags_of(command) == [flag for name, flag in decided if name == command]


HEAVY = {"torch", "deepspeed", "mlflow", "timm", "pyarrow", "numpy", "submitit"}


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.launch",
        "pipeline.status",
        "pipeline.evaluate",
        "pipeline.register",
        "pipeline.look",
        "pipeline.publish",
        "pipeline.doctor",
        "sharding.build",
    ],
)
def test_help_waits_for_nothing_heavy(module: str):
    text, imported = help_of(module)
    assert "usage" in text
    assert module.startswith("sharding") or "{None}" not in text
    assert "tyro" in imported
    assert not imported & HEAVY


def test_the_task_of_a_job_is_unpickled_without_anything_heavy():
    code = "import sys, pipeline.train.job_task; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY
