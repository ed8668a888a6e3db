"""What a launch will do, decided and checked before it looks at the data."""

import contextlib
import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Cluster, Code, Resources
from pipeline.common.packages import PACKAGES
from pipeline.common.processes import PROJECT_ROOT
from pipeline.config.paths import absolute_path, with_absolute_paths
from pipeline.config.schema import ConfigError, TrainConfig
from pipeline.launch import checks, place_checks
from pipeline.launch.evaluation import (
    cores_of_rank,
    evaluation_facts,
    evaluation_resources,
    keep_gpus,
    kept_gpus_hint,
    refuse_unnamed_gpus,
    refuse_unused_flags,
    warn_of_idle_gpus,
)
from pipeline.launch.options import LaunchOptions
from pipeline.recipes import RECIPES
from pipeline.recipes.published import describe_aim
from pipeline.run import notify
from pipeline.run.files import LOGS
from pipeline.run.system import query_gpus


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training: its folder and its configuration."""

    run_dir: Path
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All decisions of a launch.

    Attributes:
        cluster: where the jobs run.
        why: reason for that cluster, as a phrase.
        resources: resources of each run.
        run_dir: folder of the run, or of the sweep.
        runs: the one run, or those of the sweep.
        options: the flags.
        evaluation: resources that evaluate beside the training; None: the training evaluates itself.
    """

    cluster: Cluster
    why: str
    resources: Resources
    run_dir: Path
    runs: tuple[PlannedRun, ...]
    options: LaunchOptions
    evaluation: Resources | None = None

    @property
    def name(self) -> str:
        """Name of the job in the queue."""
        return f"{self.options.recipe}-{self.options.train.model.name}"

    @property
    def logs(self) -> Path:
        """Folder of the job's scripts, pickles and logs."""
        return self.run_dir / LOGS

    def code(self, *, copy: bool) -> Code:
        """Return the code that the processes import: a snapshot, or the checkout with `--code checkout`.

        Args:
            copy: take the snapshot now; without it the snapshot is only named.
        """
        from jobs import private_directory, take_snapshot

        into = self.run_dir / "code" if self.options.code == "snapshot" else None
        if into is not None and copy:
            private_directory(into)
        return take_snapshot(PROJECT_ROOT, PACKAGES, into, copy=copy)

    def run_facts(self, config: TrainConfig) -> dict[str, Any]:
        """Return what a run's `config.json` holds beside its training `config`, as far as the data do not decide it."""
        from pipeline.tracking.address import local_database, resolve_tracking_uri

        # The address of a server may hold a password; the environment of the job has it.
        tracking_uri = resolve_tracking_uri(Path.cwd())
        return {
            "recipe": self.options.recipe,
            "resources": dataclasses.asdict(self.resources),
            "tracking_uri": tracking_uri if local_database(tracking_uri) is not None else None,
            "experiment_id": os.environ.get("MLFLOW_EXPERIMENT_ID") or None,
            "experiment_name": os.environ.get("MLFLOW_EXPERIMENT_NAME") or None,
            "sweep": str(self.run_dir) if self.options.sweep else None,
            "registered_name": self.options.registered_name,
            "published": self._aim(config),
            "evaluation": self.evaluation_facts(),
        }

    def evaluation_facts(self) -> dict[str, Any] | None:
        """Return what `config.json` holds of evaluations beside the training; None: it evaluates itself."""
        in_allocation = self.options.evaluate == "allocation"
        return evaluation_facts(self.name, self.evaluation, self.cluster, in_allocation=in_allocation)

    def _aim(self, config: TrainConfig) -> dict[str, Any] | None:
        """Return the published result that a training aims at, and what it does otherwise."""
        recipe = RECIPES[self.options.recipe]
        if recipe.published is None:
            return None
        world_size, on_gpus = self.resources.world_size, bool(self.resources.gpus_per_node)
        return describe_aim(recipe.published, recipe.train(), config, world_size, on_gpus=on_gpus)


def build_plan(options: LaunchOptions) -> Plan:
    """Decide everything that can be decided without the data.

    Raises:
        JobError: the cluster does not answer, or does not have the resources.
        ConfigError: values of the training contradict each other, or a sweep names a field that does not exist.
        LaunchError: another flag cannot work.
    """
    from jobs import SlurmError, choose_cluster

    checks.check_registered_name(options.registered_name)
    if options.notify is not None:
        notify.check_address(options.notify)
    try:
        # What is meant for a cluster must not start on its login node because Slurm is away for a moment.
        cluster, why = choose_cluster(options.cluster, falls_back=RECIPES[options.recipe].cluster != "auto")
    except SlurmError as error:
        if not options.dry_run or options.cluster == "auto":
            raise
        cluster, why = options.cluster, f"as told; {error}"
    refuse_unused_flags(options, cluster)
    resources = _complete_resources(options, cluster)
    if cluster != "slurm":
        checks.refuse_slurm_flags(resources, f"--cluster {cluster} ({why})")
    place_checks.check_tracking(cluster)
    checks.check_waits_for_sweep(options, cluster)
    default = f"runs/{options.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = Path(os.path.expanduser(options.run_dir or default)).absolute()
    runs = _plan_runs(options, run_dir)
    if cluster == "slurm":
        resources = _complete_cores(options, resources, runs)
    warn_of_idle_gpus(options, resources)
    for run in runs:
        place_checks.check_gpus(run.config, resources, cluster)
        _check_training(options, resources, run)
        if resources.container_image and not resources.container_mounts:
            checks.check_container_sees(run.config.data, run.run_dir)
    workers = max(run.config.data.workers for run in runs)
    return Plan(
        cluster=cluster,
        why=why,
        resources=resources,
        run_dir=run_dir,
        runs=runs,
        options=options,
        evaluation=evaluation_resources(options, resources, cluster, workers),
    )


def _check_training(options: LaunchOptions, resources: Resources, run: PlannedRun) -> None:
    """Check a training, as `check_training` does; an error also says which GPUs without a rank are its cause."""
    member = run.run_dir.name if options.sweep else None

    def check(world_size: int) -> None:
        checks.check_training(run.config, world_size, run.run_dir, options, member)

    try:
        check(resources.world_size)
    except ConfigError as error:
        raise ConfigError(f"{error}{kept_gpus_hint(options, resources, check)}") from None


def _plan_runs(options: LaunchOptions, run_dir: Path) -> tuple[PlannedRun, ...]:
    """Return the one run in `run_dir`, or those of a sweep in folders below it."""
    from pipeline.config.sweep import build_members

    config = options.train
    own_data = RECIPES[options.recipe].own_data
    if own_data is not None and own_data.is_used_by(config):
        shards = str(Path(own_data.folder).absolute())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards))
    if options.sweep:
        runs = {run_dir / member.name: member.config for member in build_members(options.sweep, config)}
    else:
        runs = {run_dir: config}
    return tuple(
        PlannedRun(run_dir=path, config=with_absolute_paths(_with_versions(given, options.recipe, path)))
        for path, given in runs.items()
    )


def _with_versions(config: TrainConfig, recipe: str, run_dir: Path) -> TrainConfig:
    """Name the versions of the registered weights that a run starts from, and of its teacher, by their numbers.

    Without weights of the user's to start from, those of the recipe are taken where the registry has them. A run that
    has begun keeps its own.
    """
    from pipeline.run.config import read_config
    from pipeline.run.files import CONFIG_NAME
    from pipeline.tracking.client import find_version

    defaults = {"initialise_from": RECIPES[recipe].starts_from, "distill": None}
    begun = read_config(run_dir) if (run_dir / CONFIG_NAME).exists() else None
    changes = {}
    for field, default in defaults.items():
        given = getattr(config, field)
        uri = default if given is None else given
        if uri is None or not (uri.startswith("models:/") and "@" in uri):
            continue
        if begun is None:
            # What the user asked for and the registry lacks is refused by the checks that follow.
            changes[field] = find_version(uri) or given
            continue
        kept = getattr(begun.train, field)
        if given is None or (kept or "").startswith(f"{uri.partition('@')[0]}/"):
            changes[field] = kept
    return dataclasses.replace(config, **changes)


def _complete_resources(options: LaunchOptions, cluster: Cluster) -> Resources:
    """Add the GPUs and the time limit that the cluster has, and check the resources against it.

    GPUs that `--evaluate allocation` keeps have no rank.

    In a dry run a Slurm that does not answer leaves the resources as they were given.
    """
    from jobs import SlurmError, fit_resources, node_groups

    options.resources.check()
    resources = _with_absolute_paths(options.resources)
    refused = [SlurmError] if options.dry_run else []
    with contextlib.suppress(*refused):
        resources = with_gpus_found(resources, cluster)
        found = with_gpus_found(dataclasses.replace(resources, tasks_per_node=None), cluster).gpus_per_node
        refuse_unnamed_gpus(options, resources, found)
    resources = keep_gpus(options, resources)
    with contextlib.suppress(*refused):
        if cluster == "slurm":
            resources = fit_resources(resources, node_groups())
    resources.check()
    return resources


def _complete_cores(options: LaunchOptions, resources: Resources, runs: tuple[PlannedRun, ...]) -> Resources:
    """Ask for a core for each loader worker of a rank, and warn where a rank has fewer.

    Evaluations in the training's allocation get cores as well.

    In a dry run a Slurm that does not answer leaves the resources as they were given.
    """
    from jobs import SlurmError, node_groups, with_cores

    workers = max(run.config.data.workers for run in runs)
    with contextlib.suppress(*([SlurmError] if options.dry_run else [])):
        resources = with_cores(resources, node_groups(), cores_of_rank(options, resources, workers))
    cores = resources.cpus_per_task
    if cores is not None and cores <= workers:
        has = f"{cores} core{'s' if cores > 1 else ''}"
        print(
            f"warning: each rank has {has} for itself and {workers} loader workers, and may wait for its data: "
            f"--cpus-per-task {1 + workers} where nodes have so many, or --train.data.workers {max(cores - 1, 1)}",
            file=sys.stderr,
        )
    return resources


def _with_absolute_paths(resources: Resources) -> Resources:
    """Make the paths of the interpreter and of the image absolute; a name, or a path within a container, stays."""
    image, python = resources.container_image, resources.python
    if image is not None and (image.startswith(("~", "./", "../")) or resources.uses_apptainer):
        image = absolute_path(image)
    if python is not None and "/" in python and image is None:
        python = absolute_path(python)
    return dataclasses.replace(resources, container_image=image, python=python)


def with_gpus_found(resources: Resources, cluster: str) -> Resources:
    """Ask for all GPUs of a node if neither GPUs nor processes were asked for and the nodes have some."""
    if resources.gpus_per_node is not None or resources.tasks_per_node is not None:
        return resources
    if cluster == "slurm":
        from jobs import node_groups

        partitions = resources.partition.split(",") if resources.partition else None
        groups = [g for g in node_groups() if (g.partition in partitions if partitions else g.is_default)]
        gpus = min((g.gpus for g in groups), default=0)
    else:
        gpus = len(query_gpus("name"))
    return dataclasses.replace(resources, gpus_per_node=gpus) if gpus else resources
