"""Hand a training over between two rehearsal clusters again and again; needs root, iproute2, Slurm and moto's server.

    python -m tests.benchmarks.hand_over --times 10

Each cluster has hosts of its own with a private `/tmp`, and a folder that the other one does not see; a bucket of an S3
server is all that they have in common. The demo's model is trained on two hosts of one cluster until the mirror has a
newer checkpoint. Then its job is cancelled, or all its processes are killed at once, and `--from` goes on in a new run
directory on the other cluster. The run is right if it ends with the losses and the weights of one that stayed, bit for
bit. The results are in `RESULTS_mirror.md`.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.checkpoint.store import CheckpointStore
from pipeline.mirror.layout import OWNER_NAME
from pipeline.mirror.place import Place
from pipeline.recipes.digits import prepare_digits
from pipeline.run.mirror_files import read_progress, read_target
from tests.slurm.cluster import Cluster, rehearsal
from tests.slurm.config import Settings
from tests.slurm.runs import REPOSITORY, Run, wait_until
from tests.support.object_store import KEYS, s3_server

EVERY = 4
"""Steps between two checkpoints."""


class PlaceOfWork:
    """A cluster with its folder, where the shards are."""

    def __init__(self, cluster: Cluster, folder: Path, port: int) -> None:
        self.cluster, self.folder = cluster, folder
        address = f"{cluster.hosts.login_address}:{port}"
        self.location = f"s3://runs/demo?endpoint_override={address}&scheme=http&region=us-east-1"

    def launch(self, name: str, steps: int, *flags: str) -> Run:
        """Launch a run on two hosts, without waiting for it; return it once it is submitted.

        Raises:
            RuntimeError: the launch was refused.
        """
        run = Run(self.folder, name)
        command = [sys.executable, "-m", "pipeline.launch", "--cluster", "slurm", "--nodes", "2", "--no-wait"]
        command += ["--tasks-per-node", "1", "--partition", "low", "--run-dir", str(run.path)]
        command += ["--train.data.shards", str(self.folder / "shards"), "--train.steps", str(steps), *flags]
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | self.cluster.environment
        environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **KEYS}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return run

    def leave(self, run: Run, *, killed: bool) -> float:
        """End the job of a run; return the seconds until the mirror has what it can have."""
        began = time.monotonic()
        if killed:
            for pid in self.cluster.job_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.cluster.run("scancel", run.job_id)
        wait_until(lambda: not list(self.cluster.job_processes()))
        return time.monotonic() - began


def _owner_of(run: Run) -> bytes:
    """What the mirror says of a run directory that owns it."""
    target = read_target(run.path)
    assert target is not None
    return Place(target.location).read(f"{target.owner}/{OWNER_NAME}")


def hand_over(places: Sequence[PlaceOfWork], times: int) -> tuple[bool, list[str]]:
    """Train with so many hand-overs; return whether the result equals that of a run that stayed, and table rows."""
    steps = (times + 2) * (EVERY + 4)
    first = ["--recipe", "demo", "--train.save-every-steps", str(EVERY), "--train.eval-every-steps", "1000"]
    first += ["--train.global-batch-size", "16", "--train.preflight", "off"]
    whole = places[0].launch("whole", steps, *first)
    wait_until((whole.path / "registered.json").exists, 900)
    run = places[0].launch("place-0", steps, *first, "--mirror", places[0].location)
    rows, there = [], places[0]
    for number in range(1, times + 1):
        began_at = CheckpointStore(run.path).steps()[-1] if number > 1 else 0
        # The mirror has a newer checkpoint than the one that the run went on from.
        wait_until(lambda run=run, goal=began_at + EVERY: (read_progress(run.path).step or 0) >= goal, 600)
        killed = number % 2 == 0
        seconds = there.leave(run, killed=killed)
        reached, copied = run.records()[-1]["step"], read_progress(run.path).step
        former, there = run, places[number % 2]
        began = time.monotonic()
        # Slurm kills a cancelled job after seven seconds here, which may be before it has told the mirror its end.
        is_told = b'"state": "running"' not in _owner_of(former)
        how = "killed" if killed else "cancelled" if is_told else "cancelled, and killed by Slurm"
        run = there.launch(f"place-{number}", steps, "--from", there.location, *([] if is_told else ["--take-over"]))
        brought = CheckpointStore(run.path).steps()[-1]
        took = time.monotonic() - began
        again = reached - brought
        rows.append(f"| {number} | {how} | {reached} | {copied} | {brought} | {again} | {seconds:.0f} | {took:.0f} |")
        print(rows[-1], flush=True)
        shutil.rmtree(former.path)
    wait_until((run.path / "registered.json").exists, 900)
    return run.losses() == whole.losses() and run.weights() == whole.weights(), rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the hand-overs and print them; return 0 if the run equals the one that stayed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="number of hand-overs")
    options = parser.parse_args(arguments)
    print("| hand-over | left | at step | in the mirror | goes on after | computed again | s to leave | s to launch |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hand-over-")))
        port = stack.enter_context(s3_server("0.0.0.0"))
        os.environ |= KEYS
        places = []
        for name in ("one", "two"):
            folder = root / name
            prepare_digits(folder / "shards")
            cluster = Cluster(root / f"cluster-{name}")
            stack.enter_context(rehearsal(cluster.directory, Settings(hosts=True), shared=[folder]))
            places.append(PlaceOfWork(cluster, folder, port))
        query = "scheme=http&region=us-east-1&allow_bucket_creation=true"
        bucket = Place(f"s3://runs?endpoint_override=127.0.0.1:{port}&{query}")
        bucket._files.create_dir("runs")
        equal, _ = hand_over(places, options.times)
    print("equal bit for bit" if equal else "DIFFERS")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
