"""Which nodes Slurm is told to leave out of the next start."""

import json

from jobs.exclusion import FILE_NAME, apply_exclusion


def test_each_job_of_a_chain_keeps_the_nodes_of_which_slurm_was_told(fake_command, tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps({"nodes": {"n1": "slow"}, "told": {}}))
    fake_command("scontrol", "JobId=7 ExcNodeList=(null)")
    for job_id in ("7", "8"):
        apply_exclusion(tmp_path, job_id)
    assert json.loads((tmp_path / FILE_NAME).read_text())["told"] == {"7": ["n1"], "8": ["n1"]}
