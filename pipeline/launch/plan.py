"""What a launch will do, checked before anything is queued, and shown by `--dry-run`."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Cluster, Code, Resources
from pipeline.common.processes import PROJECT_ROOT
from pipeline.config.checks import check as check_config
from pipeline.config.schema import ConfigError, TrainConfig
from pipeline.launch.options import LaunchError, LaunchOptions
from pipeline.recipes import RECIPES

PACKAGES = ("pipeline", "transxnet", "jobs", "sharding")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training: its folder and its configuration."""

    run_dir: Path
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A launch, settled.

    Attributes:
        cluster: where.
        why: a sentence on that.
        resources: of each run.
        run_dir: of the run, or the folder of the sweep.
        runs: the one run, or those of the sweep.
        options: what was asked for.
    """

    cluster: Cluster
    why: str
    resources: Resources
    run_dir: Path
    runs: tuple[PlannedRun, ...]
    options: LaunchOptions

    @property
    def name(self) -> str:
        """Of the job, in the queue."""
        return f"{self.options.recipe}-{self.options.train.model.name}"

    @property
    def logs(self) -> Path:
        """Folder of scripts, pickles and logs."""
        return self.run_dir / "submitit"

    def code(self, *, copy: bool) -> Code:
        """What the processes import; `copy` takes the snapshot now, if there is to be one."""
        from jobs import private_directory, take_snapshot

        into = self.run_dir / "code" if self.options.code == "snapshot" else None
        if into is not None and copy:
            private_directory(into)
        return take_snapshot(PROJECT_ROOT, PACKAGES, into, copy=copy)

    def extra(self) -> dict[str, Any]:
        """What each run's `config.json` says beside the training."""
        from pipeline.tracking.client import resolve_tracking_uri

        return {
            "recipe": self.options.recipe,
            "resources": dataclasses.asdict(self.resources),
            "tracking_uri": None if os.environ.get("MLFLOW_TRACKING_URI") else resolve_tracking_uri(Path.cwd()),
            "sweep": str(self.run_dir) if self.options.sweep else None,
            "registered_name": self.options.registered_name,
        }


def build_plan(options: LaunchOptions) -> Plan:
    """Settle everything that can be settled without the data.

    Raises:
        JobError: a cluster that is not there, or resources that it does not have.
        ConfigError: values that cannot work together, or a sweep of what does not exist.
        LaunchError: what else cannot work.
    """
    from jobs import choose_cluster
    from pipeline.config.sweep import build_members
    from pipeline.register.names import check_name

    if options.registered_name is not None:
        try:
            check_name(options.registered_name)
        except ValueError as error:
            raise LaunchError(str(error)) from None
    if options.dry_run and options.cluster != "auto":
        cluster, why = options.cluster, "as told; not asked whether it answers"
    else:
        cluster, why = choose_cluster(options.cluster)
    resources = _settled(options.resources, cluster, options.dry_run)
    if cluster != "slurm":
        _refuse_slurms_own(resources, f"--cluster {cluster} ({why})")
    check_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", ""))
    config = options.train
    own_data = RECIPES[options.recipe].own_data
    if own_data is not None and config.data.shards == TrainConfig().data.shards:
        shards = str(Path(own_data.folder).absolute())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards))
    run_dir = Path(options.run_dir or f"runs/{options.recipe}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    if options.sweep and cluster != "slurm" and not options.wait:
        raise LaunchError("--no-wait: without SLURM a sweep trains one run after the other, and somebody must wait")
    if options.sweep:
        members = build_members(options.sweep, config)
        runs = [PlannedRun(run_dir=run_dir / member.name, config=member.config) for member in members]
    else:
        runs = [PlannedRun(run_dir=run_dir, config=config)]
    for run in runs:
        _check(run, resources.world_size, swept=bool(options.sweep))
        if resources.container_image and not resources.container_mounts:
            _refuse_unseen(run)
    return Plan(cluster=cluster, why=why, resources=resources, run_dir=run_dir, runs=tuple(runs), options=options)


def _refuse_slurms_own(resources: Resources, where: str) -> None:
    """Refuse flags that only Slurm has a use for: who gives them does not mean to train on a login node."""
    for field in ("partition", "account", "qos", "constraint", "container_image", "slurm"):
        if getattr(resources, field):
            flag = f"--{field.replace('_', '-')}"
            raise LaunchError(
                f"{flag} is for Slurm, and this would be {where}: leave it out, or mend what keeps Slurm off"
            )


def _refuse_unseen(run: PlannedRun) -> None:
    """Refuse shards that a container would not see by what is mounted without being told."""
    for flag, shards in (
        ("--train.data.shards", run.config.data.shards),
        ("--train.data.validation-shards", run.config.data.validation_shards),
    ):
        if shards is None or "://" in shards:
            continue
        path = Path(os.path.abspath(shards))
        if not any(path.is_relative_to(seen) for seen in (Path.cwd(), run.run_dir)):
            raise LaunchError(
                f"{flag} {shards} is not seen in the container, which sees the run's folder, the code and this folder: "
                f"give --container-mounts with all of them and {path}"
            )


def check_tracking_uri(uri: str) -> None:
    """Refuse an address that MLflow cannot have; empty is none.

    Raises:
        LaunchError: what is wrong, and what addresses look like.
    """
    from pipeline.common.secrets import mask_secrets

    if uri and not re.match(r"(https?://[^/]|(sqlite|postgresql|mysql|mssql)(\+\w+)?://|file:|databricks|/)", uri):
        raise LaunchError(
            f"MLFLOW_TRACKING_URI {mask_secrets(uri)} is no address of MLflow's: write http://HOST:PORT, "
            "sqlite:////PATH/mlflow.db or postgresql://…"
        )


def _settled(resources: Resources, cluster: Cluster, dry_run: bool) -> Resources:
    """The resources, checked, against the cluster too where it can be asked, with the GPUs and the time limit there."""
    from jobs import SlurmError, fit_resources, node_groups

    resources.check()
    with contextlib.suppress(*([SlurmError] if dry_run else [])):
        resources = with_gpus_found(resources, cluster)
        if cluster == "slurm":
            resources = fit_resources(resources, node_groups())
    resources.check()
    return resources


def _check(run: PlannedRun, world_size: int, *, swept: bool) -> None:
    from pipeline.augment.randaugment import RandAugment

    try:
        check_config(run.config, world_size)
        if run.config.augment.rand_augment is not None:
            RandAugment.parse(run.config.augment.rand_augment)
    except ConfigError as error:
        raise ConfigError(f"{run.run_dir.name}: {error}" if swept else str(error)) from None


def with_gpus_found(resources: Resources, cluster: str) -> Resources:
    """`resources` with all GPUs of a node where neither GPUs nor processes were asked for and the nodes have some."""
    if resources.gpus_per_node is not None or resources.tasks_per_node is not None:
        return resources
    gpus = 0
    if cluster == "slurm":
        from jobs import node_groups

        wanted = resources.partition.split(",") if resources.partition else None
        groups = [g for g in node_groups() if (g.partition in wanted if wanted else g.is_default)]
        gpus = min((g.gpus for g in groups), default=0)
    elif shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
        gpus = len([line for line in listing.splitlines() if line.startswith("GPU ")])
    return dataclasses.replace(resources, gpus_per_node=gpus) if gpus else resources


def show(plan: Plan) -> None:
    """Print the sbatch script, and of each run the configuration and the DeepSpeed JSON; nothing is written."""
    from jobs import dry_run
    from pipeline.common.secrets import mask_secrets
    from pipeline.engine.deepspeed_config import deepspeed_config

    print(f"# cluster: {plan.cluster} ({plan.why})\n")
    code = plan.code(copy=False)
    script = dry_run(
        cluster=plan.cluster,
        folder=plan.logs,
        resources=plan.resources,
        name=plan.name,
        code=code,
        elements=len(plan.runs),
    )
    print(mask_secrets(script))
    for run in plan.runs:
        print(f"# {run.run_dir / 'config.json'}")
        content = {"train": dataclasses.asdict(run.config), **plan.extra()}
        print(mask_secrets(json.dumps(content, indent=1)))
        print("\n# DeepSpeed")
        print(json.dumps(deepspeed_config(run.config, plan.resources.world_size), indent=1))
