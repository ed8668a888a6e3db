"""What a dry run learns from a real Slurm."""

import pytest

from pipeline.launch.command import main

pytestmark = pytest.mark.slurm


def test_sbatch_checks_the_script_of_a_dry_run_and_ranks_get_cores_for_their_workers(
    slurm, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = ["--recipe", "demo", "--cluster", "slurm", "--nodes", "2", "--tasks-per-node", "1", "--dry-run"]
    assert main([*flags, "--train.data.workers", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("# cluster: slurm (sinfo answers, partitions high, low)\n")
    assert "#SBATCH --cpus-per-task=3\n" in shown.out
    assert "wckey" not in shown.out
    assert "# sbatch: would take this script" in shown.out
    assert "warning" not in shown.err
    # A node has four cores.
    assert main([*flags, "--train.data.workers", "6"]) == 0
    assert "each rank has 4 cores for itself and 6 loader workers" in capsys.readouterr().err
    assert main([*flags, "--slurm", "licenses=none@nowhere"]) == 2
    assert "error: sbatch: " in capsys.readouterr().err
    assert slurm.run("squeue", "-h") == ""


def test_the_doctor_shows_the_partitions_and_what_a_preemption_leaves(slurm, tmp_path, monkeypatch, capsys):
    from pipeline.doctor.command import main as look

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert look() == 0
    shown = capsys.readouterr().out
    assert "partition low (default): 4 nodes of 4 cores" in shown
    assert "partition low may be preempted, " in shown
    assert "partition high may be preempted" not in shown
    assert "python -m pipeline.launch --cluster slurm --nodes 4" in shown
