"""Folders of the user's that have the names of the packages: they hide no package, or are named."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.common.packages import PACKAGES
from tests.support import REPOSITORY


def test_an_editable_installation_puts_the_packages_on_the_import_path(tmp_path: Path):
    """Setuptools' import hook comes after the import path, where a folder without `__init__.py` is a package too."""
    copy, built = tmp_path / "checkout", tmp_path / "built"
    for name in (*PACKAGES, "pyproject.toml", "README.md"):
        source = REPOSITORY / name
        copying = shutil.copytree if source.is_dir() else shutil.copy
        copy.mkdir(exist_ok=True)
        copying(source, copy / name)
    built.mkdir()
    program = f"from setuptools import build_meta; build_meta.build_editable({str(built)!r})"
    # The extension in C is optional; without a compiler the test is quicker.
    environment = {**os.environ, "CC": "/bin/false"}
    subprocess.run([sys.executable, "-c", program], cwd=copy, env=environment, check=True, capture_output=True)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        (entry,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        assert wheel.read(entry).decode().strip() == str(copy)


@pytest.mark.parametrize(
    "package", ["jobs", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("sharding", "transxnet"))]
)
def test_a_folder_with_the_name_of_a_package_hides_nothing_or_is_named(package: str, tmp_path: Path):
    folder = tmp_path / package
    folder.mkdir()
    (folder / "notes.py").touch()
    # The repository on the import path, as an editable installation puts it there.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def run(command: str) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, "-m", f"pipeline.{command}", "--help"]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run("launch").returncode == 0
    (folder / "__init__.py").touch()
    for command in ("launch", "status"):
        refused = run(command)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"error: {folder} hides the package {package} of this project in {REPOSITORY}: start from another folder, "
            "or rename that one\n"
        )
