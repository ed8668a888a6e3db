"""`python -m pipeline.launch`: check everything, submit one training as a job, follow it, say where everything is."""

import dataclasses
import difflib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs import Outcome, Resources
from pipeline.config import ConfigError, TrainConfig
from pipeline.recipes import RECIPES, default_resources

if TYPE_CHECKING:
    from jobs import Submission

Recipe = Literal["demo", "tiny", "small", "base", "base_384"]
Cluster = Literal["auto", "slurm", "local", "debug"]
PACKAGES = ("pipeline", "transxnet", "jobs", "sharding")


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Train a TransXNet: submit it, follow it, end with a registered model.

    `python -m pipeline.launch --recipe demo` tries the whole system on this machine in three minutes.
    """

    recipe: Recipe = "tiny"
    """which training; everything below --train. starts from its values"""
    cluster: Cluster = "auto"
    """where: auto takes SLURM when sinfo answers, else this machine; the demo stays here unless told"""
    nodes: int = 1
    """machines; without SLURM, as many processes stand for them"""
    tasks_per_node: int | None = None
    """processes a node; by default one for each GPU, or one"""
    gpus_per_node: int | None = None
    """GPUs a node"""
    cpus_per_task: int | None = None
    """cores for each process and its loader workers"""
    mem_gb: float | None = None
    """memory a node"""
    timeout_min: int | None = None
    """time limit of one attempt; the job saves, requeues and goes on"""
    partition: str | None = None
    """SLURM's partition"""
    account: str | None = None
    """SLURM's account"""
    qos: str | None = None
    """SLURM's quality of service"""
    constraint: str | None = None
    """features that the nodes must have"""
    setup: tuple[str, ...] = ()
    """shell commands before the processes start, such as "module load cuda" """
    container_image: str | None = None
    """container that the processes run in (srun's pyxis)"""
    slurm: tuple[str, ...] = ()
    """any other sbatch options, each as KEY=VALUE"""
    signal_delay_s: int | None = None
    """how long before the time limit the job is asked to save; by default two minutes, or a quarter of a short limit"""
    run_dir: str | None = None
    """folder of the run, on a disk that all nodes see; given again, the run is resumed; by default runs/RECIPE-TIME"""
    wait: bool = True
    """follow the job to its end; Ctrl-C then leaves it running under SLURM and stops it on this machine"""
    code: Literal["snapshot", "checkout"] = "snapshot"
    """what requeued attempts run: a copy of the packages taken now, or the checkout as it will be then"""
    dry_run: bool = False
    """show the sbatch script, the config and the DeepSpeed JSON; submit nothing"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """the training itself"""

    def resources(self) -> Resources:
        """What is asked of the cluster."""
        asked = {f.name: getattr(self, f.name) for f in dataclasses.fields(Resources) if hasattr(self, f.name)}
        wrong = [option for option in self.slurm if "=" not in option]
        if wrong:
            raise LaunchError(f"--slurm {wrong[0]}: write it as KEY=VALUE, such as exclusive=true")
        asked["slurm"] = dict(option.split("=", 1) for option in self.slurm)
        return Resources(**asked)


class LaunchError(ValueError):
    """A launch that cannot work; the message is for the user."""


def parse(arguments: list[str]) -> LaunchOptions:
    """Flags over the recipe's values. Exits with status 2 and a message that names the right flags on a wrong one."""
    import tyro

    name = _recipe_name(arguments)
    default = LaunchOptions(
        recipe=name,  # pyright: ignore[reportArgumentType]
        cluster="local" if name == "demo" else "auto",
        tasks_per_node=default_resources(name).tasks_per_node,
        train=RECIPES[name](),
    )
    return tyro.cli(
        LaunchOptions,
        args=arguments,
        default=default,
        prog="python -m pipeline.launch",
    )


def _recipe_name(arguments: list[str]) -> str:
    for here, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = here.partition("=")
        if flag == "--recipe":
            wanted = value or following
            if wanted not in RECIPES:
                near = difflib.get_close_matches(wanted, RECIPES, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise LaunchError(f"--recipe {wanted} does not exist; there are: {', '.join(RECIPES)}{hint}")
            return wanted
    return "tiny"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What both splits hold, found before anything is queued."""

    num_samples: int
    num_validation: int
    num_classes: int
    digest: str
    validation_digest: str

    def __str__(self) -> str:
        """One line for people."""
        partial = "" if self.num_classes >= 1000 else f" (a model of {self.num_classes} classes is trained)"
        return (
            f"{self.num_samples:,} training and {self.num_validation:,} validation images "
            f"of {self.num_classes} classes{partial}"
        )


def check_shards(config: TrainConfig) -> Dataset:
    """Both splits are there, with the same classes.

    Raises:
        LaunchError: the splits do not fit each other.
        ShardingError: what is missing, and the command that makes it.
    """
    from sharding import load_manifest

    data = config.data
    train = load_manifest(data.shards, data.train_split)
    validation = load_manifest(data.validation_shards or data.shards, data.validation_split)
    ours, theirs = [c.wnid for c in train.classes], [c.wnid for c in validation.classes]
    if ours != theirs:
        differing = sorted(set(ours) ^ set(theirs))[:3]
        raise LaunchError(
            f"the training split has {len(ours)} classes and the validation split {len(theirs)}, which differ "
            f"(in {', '.join(differing) or 'their order'}): pack both splits from one source"
        )
    return Dataset(
        num_samples=train.num_samples,
        num_validation=validation.num_samples,
        num_classes=len(ours),
        digest=train.digest,
        validation_digest=validation.digest,
    )


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


def launch(options: LaunchOptions) -> int:
    """Do what the options say; returns the exit status."""
    from jobs import choose_cluster, dry_run, local_words, private_directory, settle, submit
    from pipeline import run_dir as run_directory
    from pipeline.digits import prepare_digits
    from pipeline.engine_config import deepspeed_config
    from pipeline.randaugment import RandAugment
    from pipeline.schedule import build_schedule
    from pipeline.task import TrainTask
    from pipeline.tracking import resolve_tracking_uri

    if options.dry_run and options.cluster != "auto":
        cluster, why = options.cluster, "as told; not asked whether it answers"
    else:
        cluster, why = choose_cluster(options.cluster)
    resources = options.resources()
    if not options.dry_run:
        resources = with_gpus_found(resources, cluster)
    resources.check()
    config = options.train.check(resources.world_size)
    run_dir = Path(options.run_dir or f"runs/{options.recipe}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    if config.augment.rand_augment is not None:
        RandAugment.parse(config.augment.rand_augment)
    if options.recipe == "demo" and config.data.shards == TrainConfig().data.shards:
        config = _with_digits(config)
    extra: dict[str, Any] = {
        "recipe": options.recipe,
        "resources": dataclasses.asdict(resources),
        "tracking_uri": None if os.environ.get("MLFLOW_TRACKING_URI") else resolve_tracking_uri(Path.cwd()),
    }
    if options.dry_run:
        print(f"# cluster: {cluster} ({why})\n")
        print(dry_run(cluster=cluster, folder=run_dir / "submitit", resources=resources, name=options.recipe))
        print(f"# {run_dir / 'config.json'}")
        print(json.dumps({"train": dataclasses.asdict(config), **extra}, indent=1))
        print("\n# DeepSpeed")
        print(json.dumps(deepspeed_config(config, resources.world_size), indent=1))
        return 0
    if options.recipe == "demo":
        prepare_digits(Path(config.data.shards))
    dataset = check_shards(config)
    print(dataset)
    total_steps = build_schedule(config, dataset.num_samples).total_steps
    extra |= {"dataset": dataclasses.asdict(dataset), "total_steps": total_steps}
    run_directory.prepare(run_dir, config, extra)
    if (run_dir / "export" / "model.json").exists():
        print("this run has reached its end before; nothing is trained")
        return conclude(run_dir)
    words = local_words(resources) if cluster == "local" else f"{resources.world_size} processes"
    print(f"cluster: {cluster} ({why}); {words}")
    copies = private_directory(run_dir / "code") if options.code == "snapshot" else None
    submission = submit(
        TrainTask(run_dir),
        cluster=cluster,
        folder=run_dir / "submitit",
        resources=resources,
        name=f"{options.recipe}-{config.model.name}",
        code=settle(Path(__file__).parents[1], PACKAGES, copies),
        attached=options.wait,
    )
    print(f"job {submission.job_id}; everything of this run is in {run_dir}")
    if not options.wait:
        print(f"follow it: python -m pipeline.status {run_dir} --watch")
        return 0
    return follow(submission, run_dir, total_steps)


def _with_digits(config: TrainConfig) -> TrainConfig:
    data = dataclasses.replace(config.data, shards=str(Path("runs/digits").absolute()))
    return dataclasses.replace(config, data=data)


def conclude(run_dir: Path) -> int:
    """Register a run that was exported and is not registered yet, and say where everything is."""
    from pipeline.follow import closing_words

    if not (run_dir / "registered.json").exists():
        from pipeline.attempt import register_or_say_how

        register_or_say_how(run_dir)
    print(closing_words(run_dir, Outcome.FINISHED))
    return 0 if (run_dir / "registered.json").exists() else 1


def follow(submission: "Submission", run_dir: Path, total_steps: int) -> int:
    """Show the job's progress to its end and say what came of it; returns the exit status."""
    from pipeline.follow import Progress, closing_words

    progress = Progress(run_dir, total_steps)
    outcome = submission.wait(poll_s=1.0, on_update=progress.show)
    progress.close()
    print(closing_words(run_dir, outcome))
    if outcome is Outcome.FAILED:
        print(f"error: {submission.failure()}", file=sys.stderr)
    if outcome is Outcome.DETACHED:
        return 0
    return 0 if outcome is Outcome.FINISHED and (run_dir / "registered.json").exists() else 1


def main(arguments: list[str] | None = None) -> int:
    """Entry of the command; errors that are the user's to mend are one line and status 2."""
    try:
        return launch(parse(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit:
        raise
    except _user_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _user_errors() -> tuple[type[Exception], ...]:
    """Looked up only once something was raised: `--help` waits for none of these packages."""
    from jobs import JobError
    from pipeline.run_dir import RunDirectoryError
    from sharding import ShardingError

    return LaunchError, ConfigError, JobError, RunDirectoryError, ShardingError


if __name__ == "__main__":
    sys.exit(main())
