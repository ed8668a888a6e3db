"""Fixtures of the tests of `jobs`."""

import stat
from collections.abc import Callable

import pytest


@pytest.fixture
def fake_command(tmp_path, monkeypatch) -> Callable[..., None]:
    """A function that writes a Slurm command with a given output; no other Slurm command is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin/nowhere")

    def write(name: str, output: str = "", error: str = "", status: int = 0, sleep_s: int = 0) -> None:
        program = folder / name
        program.write_text(
            f"#!/bin/sh\n[ {sleep_s} = 0 ] || /bin/sleep {sleep_s}\n"
            f"/bin/cat <<'END'\n{output}\nEND\necho '{error}' >&2\nexit {status}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write
