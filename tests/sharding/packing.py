"""Packing in this process, packing as a command, and what came of it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from sharding import Manifest
from sharding.build import BuildOptions, build

REPOSITORY = Path(__file__).parents[2]


def pack(source: str | Path, output: str | Path, **options) -> list[Manifest]:
    given = {"source": str(source), "output": str(output), "split": "train", "shard_mb": 1, "workers": 1}
    return build(BuildOptions(**given | options))


def contents(output: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file()
    }


def flags(source: str | Path, output: str | Path, workers: int = 1) -> list[str]:
    """What `pack` says, as flags."""
    return f"--source {source} --output {output} --split train --shard-mb 1 --workers {workers}".split()


def environment(**variables: str) -> dict[str, str]:
    """This process's, as if outside of SLURM."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | variables


def command(*arguments: str, prelude: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m sharding.build`, after the statements of `prelude`."""
    return subprocess.run(
        program(*arguments, prelude=prelude),
        cwd=REPOSITORY,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )


def start(*arguments: str, prelude: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    return subprocess.Popen(
        program(*arguments, prelude=prelude),
        cwd=REPOSITORY,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def program(*arguments: str, prelude: str) -> list[str]:
    if not prelude:
        return [sys.executable, "-m", "sharding.build", *arguments]
    return [
        sys.executable,
        "-c",
        f"import sys; {prelude}; from sharding.build import main; sys.exit(main())",
        *arguments,
    ]
