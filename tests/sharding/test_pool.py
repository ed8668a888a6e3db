"""Worker processes do not run the main module of the program."""

import subprocess
import sys
from pathlib import Path

from tests.sharding.builds import REPOSITORY, digests, environment


def test_a_script_without_a_main_guard_may_use_workers(source: str, reference: dict[str, str], tmp_path: Path):
    script = tmp_path / "script.py"
    output = tmp_path / "out"
    options = f"source={source!r}, output={str(output)!r}, split='train', shard_mb=1, workers=2"
    script.write_text(f"from sharding.build import BuildOptions, build\nbuild(BuildOptions({options}))\n")
    paths = environment(PYTHONPATH=str(REPOSITORY))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(output) == reference
