"""The built wheel in an empty environment, used from a folder that has nothing to do with the project."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.common.packages import PACKAGES
from tests.support import REPOSITORY
from tests.test_architecture import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TIMM = """
import timm, torch, transxnet.timm
model = timm.create_model("transxnet_n", num_classes=7, img_size=32).eval()
print(tuple(model(torch.zeros(2, 3, 32, 32)).shape))
"""


def uv(*words: str | Path, folder: Path) -> None:
    program = shutil.which("uv")
    assert program, "pip install uv"
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


class Installed:
    """The wheel, built and installed for one interpreter."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        checkout = folder / "checkout"
        for name in (*PACKAGES, "pyproject.toml", "README.md"):
            source = REPOSITORY / name
            copying = shutil.copytree if source.is_dir() else shutil.copy
            checkout.mkdir(parents=True, exist_ok=True)
            copying(source, checkout / name)
        uv("build", "--quiet", "--wheel", "--python", interpreter, "--out-dir", folder / "dist", folder=checkout)
        shutil.rmtree(checkout)
        self.python = folder / "environment/bin/python"
        uv("venv", "--quiet", "--python", interpreter, folder / "environment", folder=folder)
        [wheel] = (folder / "dist").glob("*.whl")
        uv("pip", "install", "--quiet", "--python", self.python, wheel, folder=folder)
        self.workplace = folder / "elsewhere"
        self.workplace.mkdir()

    def run(self, *words: str) -> str:
        """Run Python in the unrelated folder; return what it prints."""
        kept = ("PATH", "HOME", "LANG", "TMPDIR", "UV_INDEX_URL", "PIP_INDEX_URL")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        done = subprocess.run(
            [self.python, *words], cwd=self.workplace, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def find_interpreter(version: str) -> str | None:
    """The path of an interpreter of this version on this machine, pyenv's among them; none is downloaded."""
    found = subprocess.run(
        [shutil.which("uv") or "uv", "python", "find", "--no-python-downloads", version],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode == 0:
        return found.stdout.strip()
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return next((str(path) for path in sorted(root.glob(f"versions/{version}.*/bin/python{version}"))), None)


@pytest.fixture(scope="module", params=["3.11", "3.12", "3.13", "3.14"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    interpreter = find_interpreter(request.param)
    if interpreter is None:
        pytest.skip(f"there is no Python {request.param} on this machine")
    return Installed(interpreter, tmp_path_factory.mktemp("wheel"))


def test_every_command_has_its_help(installed: Installed):
    for command in COMMANDS:
        assert "usage" in installed.run("-m", command, "--help")


def test_timm_finds_the_names(installed: Installed):
    assert installed.run("-c", TIMM).endswith("(2, 7)\n")


def test_the_demo_ends_with_a_registered_model(installed: Installed):
    said = installed.run("-m", "pipeline.launch", "--recipe", "demo")
    assert "models:/transxnet_n/1 (@latest, @champion)" in said
    assert (installed.workplace / "runs/mlflow.db").exists()
