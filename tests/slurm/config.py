"""The slurm.conf of the rehearsal cluster."""

import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""Device files in place of GPUs: Slurm counts and numbers them, and opens none of them."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that differ between rehearsal clusters.

    Attributes:
        grace_s: seconds between the signal of a preemption and the kill.
        user_signal: whether a preemption also sends the signal of `--signal`.
        gpus: GPUs that each node claims to have, at most 4; no device is used.
        cpus: cores that each node claims to have.
        slurmd_timeout_s: seconds without an answer after which a node counts as lost.
        kill_wait_s: seconds between TERM and KILL when a job is ended.
        hosts: whether each node is on a host of its own, with a network, a host name and a `/tmp`.
    """

    grace_s: int = 15
    user_signal: bool = False
    gpus: int = 0
    cpus: int = 4
    slurmd_timeout_s: int = 6
    kill_wait_s: int = 5
    hosts: bool = False


def config_text(directory: Path, settings: Settings, port: int, addresses: Sequence[str] | None = None) -> str:
    """The text of the file.

    Args:
        directory: folder of the cluster.
        settings: the settings of the cluster.
        port: the controller's port; the nodes have those after it.
        addresses: address of the controller and of each node, where the nodes are on hosts of their own.
    """
    host = socket.gethostname()
    controller, *own = addresses or ["127.0.0.1"] * (1 + len(NODES))
    user = getpass.getuser()
    gres = f"Gres=gpu:{settings.gpus}" if settings.gpus else ""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name if addresses else host} NodeAddr={own[number]} Port={port + 1 + number} "
        f"CPUs={settings.cpus} RealMemory=4000 Feature=rehearsal {gres}"
        for number, name in enumerate(NODES)
    )
    return f"""ClusterName=rehearsal
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
{"SlurmctldParameters=preempt_send_user_signal" if settings.user_signal else ""}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdTimeout={settings.slurmd_timeout_s}
SlurmctldTimeout=30
KillWait={settings.kill_wait_s}
MinJobAge=120
OverTimeLimit=0
{"GresTypes=gpu" if settings.gpus else ""}
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={settings.grace_s} MaxTime=120 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=120 State=UP
"""
