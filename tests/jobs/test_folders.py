"""Which folders are accepted for pickles."""

import os

import pytest

import jobs
from tests.jobs.tasks import Count


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_job_in_a_folder_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    os.chown(folder, 65534, -1)
    with pytest.raises(jobs.JobError, match="belongs to user 65534"):
        jobs.submit(
            Count(folder=tmp_path), cluster="local", folder=folder, resources=jobs.Resources(nodes=3), name="count"
        )
