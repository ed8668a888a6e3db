"""The resources that a job asks for."""

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import JobError

DEFAULT_TIMEOUT_MIN = 24 * 60

_SLURM_ONLY = ("partition", "account", "qos", "constraint", "container_image", "slurm", "chain")
"""Fields of `Resources` that only Slurm understands."""

_FLAG_OF_OPTION = {
    "nodes": "--nodes",
    "ntasks-per-node": "--tasks-per-node",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "mem": "--mem-gb",
    "time": "--timeout-min",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
}
_RESERVED = {"job-name", "output", "error", "open-mode", "signal", "array", "ntasks", "wait"}
"""Options of sbatch that this package sets itself."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources that a job asks for. The launcher shows these descriptions as the help of its flags.

    The local cluster uses only `nodes`, `tasks_per_node`, `gpus_per_node`, `setup` and the times.

    Attributes:
        nodes: number of nodes; without Slurm, one group of processes on this machine for each
        tasks_per_node: processes on each node; by default one for each GPU, or one
        gpus_per_node: GPUs of each node, all visible to each of its processes; by default none are asked for and none
            are hidden
        cpus_per_task: cores for each process and its children; by default under Slurm one for each loader worker and
            one more, or the process's share of a node where that is less
        mem_gb: memory of each node; by default the cluster decides
        timeout_min: time limit of one attempt, after which the job saves, is requeued and goes on; by default a day or
            the partition's limit under Slurm, and no limit on this machine
        partition: partition in which to queue; by default the cluster decides
        account: account to charge
        qos: quality of service
        constraint: features that the nodes must have
        setup: shell commands to run before the processes start, such as "module load cuda"
        container_image: image in which the processes run: a .sif file through apptainer or singularity, any other one
            through the pyxis plug-in of srun
        container_mounts: mounts of the container, as SOURCE:TARGET,…; by default the run's folder, the code and the
            folder of submission, each under its own path
        python: Python interpreter of the processes; by default the current one, or python3 in a container
        slurm: any other sbatch options, each as KEY=VALUE
        signal_delay_s: how long before the time limit the job is asked to save; by default two minutes, or a quarter of
            a limit under eight minutes
        chain: where jobs may not be requeued, this many jobs are submitted instead of one; each starts when the one
            before it ends, and goes on with the run, at whose end the rest is cancelled
        max_stalls: number of attempts that may start from the same progress before the job is ended
        meeting_s: how long the processes wait for each other at the start
    """

    nodes: int = 1
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    timeout_min: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    container_image: str | None = None
    container_mounts: str | None = None
    python: str | None = None
    slurm: tuple[str, ...] = ()
    signal_delay_s: int | None = None
    chain: int | None = None
    max_stalls: int = 5
    meeting_s: float = 300.0

    @property
    def processes_per_node(self) -> int:
        """Processes on each node."""
        if self.tasks_per_node is not None:
            return self.tasks_per_node
        return max(1, self.gpus_per_node or 0)

    @property
    def uses_apptainer(self) -> bool:
        """Whether the image is opened by apptainer or singularity, and not by srun."""
        return self.container_image is not None and self.container_image.endswith(".sif")

    @property
    def world_size(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.processes_per_node

    @property
    def notice_s(self) -> int:
        """How many seconds before the time limit the job is asked to save."""
        if self.signal_delay_s is not None:
            return self.signal_delay_s
        return min(120, (self.timeout_min or DEFAULT_TIMEOUT_MIN) * 15)

    def check(self) -> None:
        """Check the values without asking a cluster.

        Raises:
            JobError: one line for each wrong value, with the flag to change.
        """
        errors = [
            f"{flag} {value} must be at least {least}"
            for flag, value, least in (
                ("--nodes", self.nodes, 1),
                ("--tasks-per-node", self.tasks_per_node, 1),
                ("--gpus-per-node", self.gpus_per_node, 0),
                ("--cpus-per-task", self.cpus_per_task, 1),
                ("--timeout-min", self.timeout_min, 1),
                ("--signal-delay-s", self.signal_delay_s, 1),
                ("--chain", self.chain, 1),
                ("--max-stalls", self.max_stalls, 1),
            )
            if value is not None and value < least
        ]
        if self.mem_gb is not None and self.mem_gb <= 0:
            errors.append(f"--mem-gb {self.mem_gb} must be positive")
        if self.gpus_per_node and self.processes_per_node > self.gpus_per_node:
            errors.append(
                f"--tasks-per-node {self.processes_per_node} is more than --gpus-per-node {self.gpus_per_node}: "
                "each process drives one GPU"
            )
        if self.timeout_min is not None and self.timeout_min >= 1 and self.notice_s >= self.timeout_min * 60:
            errors.append(
                f"--signal-delay-s {self.signal_delay_s} leaves nothing of --timeout-min {self.timeout_min}: "
                "raise --timeout-min or lower --signal-delay-s"
            )
        if self.container_mounts and not self.container_image:
            errors.append(
                "--container-mounts is for a container: add --container-image, or leave --container-mounts out"
            )
        for option in self.slurm:
            key, equals, value = option.partition("=")
            if not equals:
                errors.append(f"--slurm {option}: write it as KEY=VALUE, such as exclusive=true")
            plain = key.lstrip("-").replace("_", "-")
            if plain in _FLAG_OF_OPTION:
                errors.append(f"--slurm {key}=…: use {_FLAG_OF_OPTION[plain]} instead")
            elif plain == "no-requeue" or (plain == "requeue" and value.lower() == "false"):
                errors.append(f"--slurm {option}: use --chain N, with which N jobs go on one after the other")
            elif plain == "requeue" and self.chain is not None:
                errors.append(f"--slurm {option}: the jobs of a --chain are not requeued: leave one of them out")
            elif plain in _RESERVED:
                errors.append(f"--slurm {key}=…: this option is set by the launcher")
        if errors:
            raise JobError("\n".join(errors))

    def slurm_only(self) -> Iterator[str]:
        """Yield the flags of the values that are set and that only Slurm understands."""
        for field in _SLURM_ONLY:
            if getattr(self, field):
                yield f"--{field.replace('_', '-')}"

    def option_set(self) -> dict[str, str | bool]:
        """The options in `slurm` in Submitit's form; an empty value or `true` makes a flag without a value."""
        options: dict[str, str | bool] = {}
        for key, _, value in (option.partition("=") for option in self.slurm):
            options[key.lstrip("-").replace("_", "-")] = True if value.lower() in ("", "true") else value
        return options
