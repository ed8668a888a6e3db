"""The checks of a launch: its flags, the weights to start from, and the run directory."""

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Resources
from pipeline.config.checks import check as check_config
from pipeline.config.schema import AUTO, ConfigError, DataConfig, TrainConfig
from pipeline.launch.data_checks import Dataset, NotHereError, check_shards
from pipeline.launch.micro_batch import kept_micro_batch
from pipeline.launch.options import LaunchError, LaunchOptions
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run.config import read_config
from pipeline.run.files import CONFIG_NAME, read_registered
from pipeline.run.lost_checkpoints import describe_lost_checkpoints
from pipeline.run.micro_batch import with_found
from pipeline.tasks import find_task
from pipeline.weights.card import is_exported


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the checks of a run have found.

    Attributes:
        dataset: both splits.
        total_steps: optimizer steps of the training.
        facts: what the run's `config.json` holds beside the training.
        warnings: what may be a mistake, a sentence each.
    """

    dataset: Dataset
    total_steps: int
    facts: dict[str, Any]
    warnings: list[str]


def check_registered_name(name: str | None) -> None:
    """Refuse a value of `--registered-name` that MLflow does not take.

    Raises:
        LaunchError: the message says which names MLflow takes.
    """
    from pipeline.register.names import check_name

    if name is not None:
        try:
            check_name(name)
        except ValueError as error:
            raise LaunchError(str(error)) from None


def refuse_slurm_flags(resources: Resources, where: str) -> None:
    """Refuse flags that only Slurm understands: a user who gives them does not mean to train on a login node.

    Args:
        resources: as the flags say.
        where: the chosen cluster and the reason for it, for the message.

    Raises:
        LaunchError: such a flag is given.
    """
    for flag in resources.slurm_only():
        raise LaunchError(
            f"{flag} is for Slurm, and this launch would use {where}: leave it out, or mend what keeps Slurm from "
            "answering"
        )


def check_waits_for_sweep(options: LaunchOptions, cluster: str) -> None:
    """Refuse `--no-wait` for a sweep without Slurm: the launcher itself starts each training after the previous one.

    Raises:
        LaunchError: the flags contradict each other.
    """
    if options.sweep and cluster != "slurm" and not options.wait:
        raise LaunchError(
            "--no-wait: without SLURM a sweep trains one run after the other, so the launcher has to wait: leave it out"
        )


def check_training(
    config: TrainConfig, world_size: int, run_dir: Path, options: LaunchOptions, member: str | None
) -> None:
    """Check the values of a training, alone and together, and with the micro-batch that was found for its run.

    Args:
        config: the training.
        world_size: number of ranks.
        run_dir: folder of the run; it may be missing.
        options: the flags `--from` and `--begin-again`.
        member: name of the run within its sweep, for the message.

    Raises:
        ConfigError: a value is impossible.
        RunDirectoryError, MirrorError: the micro-batch that was found cannot be read.
    """
    from pipeline.augment.randaugment import RandAugment

    try:
        checked = check_config(config, world_size)
        if config.micro_batch_size == AUTO:
            with_found(checked, world_size, kept_micro_batch(run_dir, options))
        find_task(config.task).check(config)
        if config.distill is not None and find_task(config.task).distillation is None:
            raise ConfigError(f"--train.distill: a {config.task} learns from no teacher: leave it out")
        if config.augment.rand_augment is not None:
            RandAugment.parse(config.augment.rand_augment)
    except ConfigError as error:
        raise ConfigError(f"{member}: {error}" if member else str(error)) from None


def check_container_sees(data: DataConfig, run_dir: Path) -> None:
    """Refuse shards, and a folder to stage them in, outside the folders that a container mounts by default.

    Raises:
        LaunchError: the message names the flag that mounts them.
    """
    for flag, shards in (
        ("--train.data.shards", data.shards),
        ("--train.data.validation-shards", data.validation_shards),
        ("--train.data.stage", data.stage),
    ):
        if shards is None or "://" in shards:
            continue
        path = Path(shards if shards.startswith("$") else os.path.abspath(shards))
        if not any(path.is_relative_to(mounted) for mounted in (Path.cwd(), run_dir)):
            raise LaunchError(
                f"{flag} {shards} is not seen in the container, which sees the run's folder, the code and this folder: "
                f"give --container-mounts with all of them and {path}"
            )


def check_weights(config: TrainConfig) -> None:
    """Check the weights that a new run starts from: that they exist, can be read and are of the network it trains.

    Raises:
        NotHereError: the file or folder does not exist.
        LaunchError: the registry does not know the version, or it is of another network.
        ConfigError: the file cannot be read, or is of another network.
    """
    source = config.initialise_from
    if source is None:
        if config.initialise_entry is not None:
            raise LaunchError("--train.initialise-entry is an entry of --train.initialise-from, which is not given")
        return
    if source.startswith("models:/"):
        _check_registered(source, find_task(config.task).backbone(config.model.name), config.model.name)
    elif not Path(source).exists():
        raise NotHereError(
            f"--train.initialise-from {source} does not exist: give a run directory, a models:/ URI, or a file "
            "(.safetensors, .pth, .pt, .bin, .ckpt)"
        )
    else:
        from pipeline.weights.load import check_initial

        check_initial(config.model, find_task(config.task), source, config.initialise_entry)


def _check_registered(uri: str, backbone: str, model_name: str) -> None:
    """Check that the registry has a model version, and that it is of the network that is trained, or its backbone."""
    from pipeline.tracking.client import TrackingError, fetch_model_file
    from pipeline.weights.card import CARD_NAME, ModelCardError, load_model_card

    try:
        file = fetch_model_file(uri, f"artifacts/{CARD_NAME}")
        card = load_model_card(file.parent) if file is not None else None
    except (TrackingError, ModelCardError) as error:
        raise LaunchError(f"--train.initialise-from {uri}: {error}") from error
    if card is not None and card.name not in (backbone, model_name):
        raise LaunchError(f"--train.initialise-from {uri}: weights of {card.name}, and this run trains {model_name}")


def check_start(run_dir: Path, config: TrainConfig, options: LaunchOptions) -> None:
    """Check what does not need the data: the weights of a new run, or the MLflow run of one that is resumed.

    Args:
        run_dir: folder of the run.
        config: the training.
        options: the flags `--registered-name` and `--begin-again`.

    Raises:
        LaunchError: the weights are missing, the checkpoints of the run are gone, the tracking server is another one,
            or the model is registered already under another name.
    """
    from pipeline.tracking.state import tracking_uri_of

    if not (run_dir / CONFIG_NAME).exists():
        return check_weights(config)
    try:
        tracking_uri_of(run_dir)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    lost = None if options.begin_again or is_exported(run_dir) else describe_lost_checkpoints(run_dir)
    if lost is not None:
        raise LaunchError(lost)
    registered, registered_name = read_registered(run_dir), options.registered_name
    if registered_name is not None and registered is not None and registered["name"] != registered_name:
        raise LaunchError(
            f"--registered-name {registered_name}: {run_dir} is registered as {registered['name']} already; under "
            f"another name: python -m pipeline.register {run_dir} --registered-name {shlex.quote(registered_name)}"
        )


def check_run(run_dir: Path, config: TrainConfig, facts: dict[str, Any]) -> Checked:
    """Check what needs the data: the shards, the length of the training, and that the folder is of the same training.

    Args:
        run_dir: folder of the run.
        config: the training.
        facts: what `config.json` will hold beside the training; what the data decide is added.

    Raises:
        LaunchError: as `check_shards`.
        ShardingError: as `check_shards`.
        RunDirectoryError: the folder belongs to another training or cannot be used.
    """
    from pipeline.train.schedule import build_schedule, describe_slow_average

    dataset = check_shards(config)
    total_steps = build_schedule(config, dataset.num_samples).total_steps
    facts = facts | {"dataset": dataclasses.asdict(dataset), "total_steps": total_steps}
    run_directory.check(run_dir, config, facts)
    if facts["registered_name"] is None and (run_dir / CONFIG_NAME).exists():
        facts["registered_name"] = read_config(run_dir).registered_name
    warnings = describe_slow_average(config, total_steps)
    if dataset.is_its_own_validation:
        warnings.append(
            "both splits hold the same images, so the scores say nothing of new images: pack them with python -m "
            "sharding.build --source IMAGES --hold-out 0.2 into another --output"
        )
    recipe = RECIPES.get(facts["recipe"])
    if recipe is not None and recipe.needs_weights and config.initialise_from is None:
        warnings.append(
            f"{facts['recipe']} is meant to start from trained weights, and starts from random ones here: give some "
            "with --train.initialise-from"
        )
    return Checked(dataset=dataset, total_steps=total_steps, facts=facts, warnings=warnings)
