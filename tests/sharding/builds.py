"""Run a build as a function, as the command in this process, or as a process of its own; inspect what it wrote."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from sharding import Manifest
from sharding.build import BuildOptions, build
from sharding.build import main as build_main
from sharding.verify import VerifyOptions, verify

REPOSITORY = Path(__file__).parents[2]
WORK_FOLDER = ".imagenet1k-train.parts"


def pack(source: str | Path, output: str | Path, **options) -> list[Manifest]:
    """Build the train split in this process, in shards of one MB."""
    given = {"source": str(source), "output": str(output), "split": "train", "shard_mb": 1, "workers": 1}
    return build(BuildOptions(**given | options))


def flags(source: str | Path, output: str | Path, workers: int = 1) -> list[str]:
    """The flags that mean the same as the arguments of `pack`."""
    return f"--source {source} --output {output} --split train --shard-mb 1 --workers {workers}".split()


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_build(*arguments: str) -> Result:
    """Run `python -m sharding.build` in this process, which saves the seconds that a process takes to start."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["build", *arguments]),
        mock.patch.dict(os.environ, environment(), clear=True),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            returncode = build_main()
        except SystemExit as stopped:  # tyro ends the process after a wrong flag
            returncode = int(stopped.code or 0)
    return Result(returncode, stdout.getvalue(), stderr.getvalue())


def run_build_process(arguments: list[str], variables: dict[str, str]) -> None:
    """Run the command with additional environment variables: the target of a forked process."""
    os.environ.update(variables)
    sys.argv = ["build", *arguments]
    sys.exit(build_main())


def pack_process(source: str, output: str, variables: dict[str, str]) -> None:
    """Build with additional environment variables, all in one process: the target of a forked process."""
    os.environ.update(variables)
    pack(source, output)


def environment(**variables: str) -> dict[str, str]:
    """The environment of this process without SLURM's variables."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | variables


def start_build(*arguments: str) -> subprocess.Popen[str]:
    """Start `python -m sharding.build` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sharding.build", *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, including hidden files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_only_final_files(output: Path, reference: dict[str, str]) -> None:
    """Check that each visible file is as in an undisturbed build, and that a manifest stands beside all of them."""
    published = {name: digest for name, digest in digests(output).items() if not name.startswith(".")}
    assert published.items() <= reference.items()
    if "imagenet1k-train.json" in published:
        assert published == reference


def faults_of(shards: Path, **options) -> list[str]:
    """The faults that verification finds, one line each."""
    return [str(fault) for fault in verify(VerifyOptions(shards=str(shards), workers=1, **options))]
