"""The variables, the address and the ports of a distributed job."""

import os

import pytest

import jobs
from jobs.environment import free_port, master_address, master_port
from tests.jobs.support import PLACE


def test_master_address_falls_back_to_an_address_that_resolves(fake_command, monkeypatch):
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR", raising=False)
    assert master_address(["n1", "n2"], resolves=lambda host: True) == "n1"
    fake_command("scontrol", "NodeName=n1 NodeAddr=10.0.0.1 NodeHostName=vm")
    assert master_address(["n1"], resolves=lambda host: host == "10.0.0.1") == "10.0.0.1"
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9")
    assert master_address(["n1"], resolves=lambda host: False) == "10.0.0.9"
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR")
    with pytest.raises(jobs.JobError, match="the first node of the job, n1"):
        master_address(["n1"], resolves=lambda host: False)


def test_ports_differ_between_attempts_and_lie_below_those_of_outgoing_connections():
    ports = {master_port(f"12.{restarts}") for restarts in range(20)}
    assert len(ports) == 20
    assert all(20000 <= port < 32768 for port in [*ports, free_port()])


def test_exported_environment_leaves_the_visible_devices_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("JOB_ID", "")
    monkeypatch.setenv("JOB_RESTARTS", "")
    PLACE.export()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert (os.environ["RANK"], os.environ["MASTER_ADDR"], os.environ["JOB_RESTARTS"]) == ("0", "n1", "1")
