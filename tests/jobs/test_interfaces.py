"""The network interface that Gloo and NCCL use: the one by which the ranks have met."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jobs.environment import free_port
from jobs.interfaces import addresses, export_interface, is_loopback
from jobs.rendezvous import rendezvous
from jobs.submit import call_submitit
from tests.jobs.support import PLACE, REPOSITORY


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    """The user has chosen no interface."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "JOBS_SOCKET_IFNAMES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def chosen() -> tuple[str | None, str | None]:
    return os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")


def test_a_choice_of_the_user_stays_and_an_unknown_address_chooses_none(monkeypatch):
    assert export_interface("203.0.113.9") == export_interface("") == ""
    assert chosen() == (None, None)
    assert export_interface("127.0.1.1") == "lo"
    assert chosen() == ("lo", None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    export_interface("127.0.0.1")
    assert chosen() == ("mine", None)


def test_a_job_of_a_job_gets_the_variables_of_the_user_and_no_interface_of_this_node(monkeypatch):
    """It may run on nodes whose interfaces have other names."""
    users = {"GROUP_HOME": "/home/groups/lab", "ROLE_ARN": "arn:x", "NCCL_SOCKET_IFNAME": "ib0"}
    for name, value in (users | {"GROUP_RANK": "1", "ROLE_NAME": "default", "TORCHELASTIC_RUN_ID": "1"}).items():
        monkeypatch.setenv(name, value)
    export_interface("127.0.0.1")
    assert chosen() == ("lo", "ib0")
    names = "|".join([*users, "GROUP_RANK", "ROLE_NAME", "TORCHELASTIC_RUN_ID", "GLOO_SOCKET_IFNAME"])
    # As a process beside the rank, which has inherited the rank's variables.
    code = f"from tests.jobs.test_interfaces import submitted_environment as e; print(e({names!r}.split('|')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == f"{users}\n"
    assert chosen() == ("lo", "ib0")


def submitted_environment(names: list[str]) -> dict[str, str]:
    """Those of the variables that a job gets which is submitted here."""
    return call_submitit(lambda: {name: os.environ[name] for name in names if name in os.environ})


def test_ranks_beside_rank_0_take_the_interface_by_which_the_others_came():
    network = {name: address for name, address in addresses().items() if not is_loopback(address)}
    if not network:
        pytest.skip("this machine has no network")
    name, address = min(network.items())
    place = replace(PLACE, world_size=3, master_port=free_port())

    def meet(rank: int) -> str:
        # Of rank 0's own name, its node knows 127.0.1.1, and the other nodes the address in the network.
        return rendezvous(replace(place, rank=rank, master_addr=address if rank == 2 else "127.0.1.1"), 20).address

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(meet, range(3))) == [address] * 3
    assert export_interface(address) == name
    assert chosen() == (name, f"={name}")


RANK = """
import sys, datetime
from dataclasses import replace
from jobs.job import meet
from tests.jobs.support import PLACE
place, _ = meet(replace(PLACE, rank=int(sys.argv[1]), master_addr="headnode"), 60)
import torch, torch.distributed as group
address = f"tcp://headnode:{place.master_port}"
group.init_process_group("gloo", init_method=address, rank=place.rank, world_size=2, timeout=datetime.timedelta(0, 20))
total = torch.ones(1)
group.all_reduce(total)
print("sum", int(total))
"""


@pytest.fixture
def two_hosts() -> Iterator[list[list[str]]]:
    """The beginnings of commands for two hosts in a network. The first has its own name at 127.0.1.1, as on Debian."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces, by ip of iproute2")
    names = [f"jobs-{os.getpid()}-{number}" for number in range(2)]
    hosts = ["headnode", "worker"]
    lines = ["127.0.1.1 headnode\n", "127.0.1.1 worker\n10.77.0.1 headnode\n"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    try:
        for name, text in zip(names, lines, strict=True):
            ip("netns", "add", name)
            folder = f"/etc/netns/{name}"
            os.makedirs(folder)
            with open(f"{folder}/hosts", "w", encoding="utf-8") as file:
                file.write("127.0.0.1 localhost\n" + text)
        ip("link", "add", "net0", "netns", names[0], "type", "veth", "peer", "name", "net1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{1 + number}/24", "dev", f"net{number}")
            ip("-n", name, "link", "set", f"net{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [
            ["ip", "netns", "exec", name, "unshare", "-u", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
            for name, host in zip(names, hosts, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


@pytest.mark.slow
def test_ranks_of_two_hosts_join_though_the_first_has_its_own_name_at_the_loopback_interface(two_hosts):
    def run(rank: int) -> subprocess.CompletedProcess[str]:
        command = [*two_hosts[rank], sys.executable, "-c", RANK, str(rank)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, range(2)):
            assert done.stdout == "sum 2\n", done.stderr[-2000:]
