"""A run and the place of its mirror."""

from pathlib import Path

import pytest

from tests.support.mirrored_runs import new_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Folder of a run without checkpoints."""
    return new_run(tmp_path / "here" / "run")


@pytest.fixture
def location(tmp_path: Path) -> str:
    """A folder that does not exist."""
    return str(tmp_path / "mirror")
