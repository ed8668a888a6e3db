"""How the commands end: errors in one line, exit statuses, and exceptions that cross processes."""

import ast
import pickle
import sys
from pathlib import Path
from typing import Literal

import pytest

import pipeline
from jobs import JobError
from pipeline.common.cli import exit_status, report_errors, run_main
from pipeline.common.errors import InputError, TrainingError
from pipeline.run.files import RunDirectoryError
from pipeline.train.non_finite import NotFiniteError
from sharding import ShardingError


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize("error", [InputError("no"), JobError("no"), ShardingError("no"), OSError("no")])
def test_an_error_for_the_user_is_one_line_and_a_status(error, capsys):
    assert exit_status(raising(error), on_error=2) == 2
    assert capsys.readouterr() == ("", "error: no\n")


def test_secrets_are_masked(capsys):
    exit_status(raising(OSError("http://me:word@host is down")))
    assert capsys.readouterr().err == "error: http://me:***@host is down\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status(raising(ZeroDivisionError()))


def test_ctrl_c_is_130(capsys):
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_broken_pipe_is_no_success_where_the_work_goes_on_behind_the_output():
    with pytest.raises(BrokenPipeError):
        report_errors(raising(BrokenPipeError()))


@pytest.mark.parametrize("error", [NotFiniteError(7, "loss is nan"), RunDirectoryError("no"), TrainingError("no")])
def test_an_error_survives_a_pickle(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_every_error_of_the_package_derives_from_one_base():
    folder = Path(pipeline.__path__[0])
    bases = {}
    for path in folder.rglob("*.py"):
        classes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))
        bases |= {node.name: {ast.unparse(base) for base in node.bases} for node in classes}
    errors = {name for name in bases if name.endswith("Error")} - {"PipelineError"}
    builtin = {name for name in errors if {"PipelineError"} < bases[name]}
    assert {name for name in errors - builtin if not bases[name] & builtin} == {"DecodeError"}


@pytest.mark.parametrize("words", [["--help"], ["--export", "excel"]])
def test_a_flag_with_choices_names_them_and_nothing_else(words, monkeypatch, capsys):
    def main(run_dir: Path | None = None, /, *, export: Literal["csv", "parquet"] | None = None) -> int:
        """Show."""
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["show", *words])
    with pytest.raises(SystemExit):
        run_main(main, "show")
    said = "".join(capsys.readouterr())
    assert "csv" in said
    assert "None" not in said
