"""What the commands share: an error is one line on stderr and an exit code."""

import os
from pathlib import Path

import pytest

from sharding import ShardingError
from tests.sharding.builds import flags, pack, run_build


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
        (["--shard-mb", "0"], "--shard-mb 0: it must be from 1 to 4,096"),
        (["--task-index", "1"], "--task-index and --task-count belong together"),
        (["--task-index", "3", "--task-count", "3"], "--task-index 3: it must be from 0 to 2"),
        (["--output", "/dev/null/x"], "/dev/null/x cannot be written"),
        (["--output", "s4://bucket/x"], "'s4://bucket/x' cannot be opened"),
        (["--classes", "/nowhere.txt"], "--classes /nowhere.txt: there is no such file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_1(arguments: list[str], message: str, source: str, tmp_path: Path):
    done = run_build("--source", source, "--split", "train", "--output", str(tmp_path / "out"), *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


def test_an_unknown_flag_suggests_the_right_one():
    done = run_build("--sources", "x")
    assert done.returncode == 2
    assert "--source" in done.stderr


def test_help_shows_what_is_typed():
    shown = run_build("--help").stdout
    assert "--split STR" in shown
    assert "None}" not in shown


def test_a_path_that_is_not_utf8_is_a_one_line_error(source: str, tmp_path: Path):
    path = tmp_path / os.fsdecode(b"\xff")
    path.mkdir()
    for flag in ("source", "output", "classes"):
        with pytest.raises(ShardingError, match="is not UTF-8"):
            pack(**{"source": source, "output": tmp_path / "out", flag: str(path)})
    done = run_build(*flags(path, tmp_path / "out"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "is not UTF-8. Rename it" in done.stderr
