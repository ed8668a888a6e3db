"""The report at the start of an attempt."""

import json
import os

import jobs
from jobs.job_report import collect_report, write_report
from tests.jobs.support import PLACE, REPOSITORY, starts
from tests.jobs.tasks import Count

LOCATIONS = [("n1", "2"), ("n1", "3"), ("n2", "")]


def test_report_names_hosts_versions_and_file_systems_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    collected = collect_report(PLACE, LOCATIONS, [], [tmp_path], "abc of commit x")
    text = write_report(tmp_path / "report.json", collected)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["hosts"] == {"n1": "ranks 0, 1 on GPUs 2, 3", "n2": "ranks 2"}
    assert report["environment"]["NCCL_DEBUG"] == "WARN"
    assert report["packages"]["submitit"]
    assert report["file_systems"][str(tmp_path)]["free_gb"] > 0
    assert "hunter2" not in text


def test_rank_0_alone_writes_the_report_to_its_log_and_to_a_file(tmp_path):
    folder = tmp_path / "jobs"
    submission = jobs.submit(
        Count(folder=tmp_path, end=1),
        cluster="local",
        folder=folder,
        resources=jobs.Resources(nodes=2),
        name="x",
        code=jobs.Code(root=REPOSITORY),
    )
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert len(starts(tmp_path, 1)) == 1
    (path,) = folder.glob("*_report_0.json")
    assert json.loads(path.read_text())["job"]["world_size"] == 2
    logs = [(folder / f"{submission.job_id}_{rank}_log.out").read_text() for rank in range(2)]
    assert ['"packages"' in text for text in logs] == [True, False]
    assert "JOB_REPORT" not in os.environ
