"""The flags of `python -m pipeline.launch`: those of the launch, of `jobs.Resources`, and of the training."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs import Resources
from pipeline.common.cli import help_registry
from pipeline.common.errors import PipelineError
from pipeline.config.paths import absolute_path
from pipeline.config.schema import TrainConfig
from pipeline.config.sweep import refuse_contradictions
from pipeline.recipes import RECIPES, ClusterChoice, RecipeName

DEFAULT_RECIPE = "tiny"
LIST_FLAGS = ("--slurm", "--setup", "--sweep")
"""Flags that take several values, at once or by being repeated."""


class LaunchError(PipelineError, ValueError):
    """A launch that cannot work."""


_OTHER_NAMES = {
    "--resume": "the same --run-dir, given again, resumes that run",
    "--resume-from": "the same --run-dir, given again, resumes that run; --train.initialise-from starts a new one",
    "--output-dir": "--run-dir is the folder of the run",
    "--job-name": "jobs are named after the recipe",
    "--gres": "--gpus-per-node is the number of GPUs of each node",
    "--gpus": "--gpus-per-node is the number of GPUs of each node",
    "--ntasks": "--nodes and --tasks-per-node give the number of processes",
    "--ntasks-per-node": "--tasks-per-node is the number of processes of each node",
    "--nproc-per-node": "--tasks-per-node is the number of processes of each node",
    "--time": "--timeout-min is the time limit, in minutes",
    "--mem": "--mem-gb is the memory of each node, in GB",
    "--train.num-classes": "the classes are those of the shards in --train.data.shards; leave it out",
    "--train.model.num-classes": "the classes are those of the shards in --train.data.shards; leave it out",
    "--num-classes": "the classes are those of the shards in --train.data.shards; leave it out",
}
"""What to give instead of a flag that other programs have."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Train a TransXNet: submit it, follow it, end with a registered model.

    To begin with:
    - the whole system here, in three minutes: `python -m pipeline.launch --recipe demo`
    - on four nodes: `python -m pipeline.launch --nodes 4 --train.data.shards /shared/shards`
    - the defaults of another recipe: `python -m pipeline.launch --recipe base --help`
    """

    recipe: RecipeName = DEFAULT_RECIPE
    """which training; everything below --train. starts from its values"""
    cluster: ClusterChoice = "auto"
    """where: auto takes SLURM when sinfo answers, else this machine, unless it belongs to a cluster that is down; the
    demo stays here unless told"""
    resources: Annotated[Resources, tyro.conf.arg(name="")] = field(default_factory=Resources)
    run_dir: str | None = None
    """folder of the run, on a disk that all nodes see; given again, the run is resumed; by default runs/RECIPE-TIME"""
    wait: bool = True
    """follow the job to its end; Ctrl-C then leaves it running under SLURM and stops it on this machine"""
    code: Literal["snapshot", "checkout"] = "snapshot"
    """what requeued attempts run: a copy of the packages taken now, or the checkout as it will be then"""
    registered_name: str | None = None
    """model in the registry that it becomes a version of; by default that of the network, such as transxnet_t"""
    sweep: tuple[str, ...] = ()
    """a training for each value, as in train.optimizer.lr=1e-3,2e-3, or combination: one array, one MLflow parent"""
    evaluate: Literal["inline", "job", "allocation"] = "inline"
    """who evaluates: the training between two steps, or beside it a job of its own, or GPUs of the training's job"""
    evaluate_gpus: int | None = None
    """beside the training: GPUs that evaluate, with a process for each; by default one where the training has some; in
    the allocation each node keeps so many from the training; with 0, CPU cores evaluate"""
    evaluate_partition: str | None = None
    """with --evaluate job: its partition; by default that of the training"""
    evaluate_timeout_min: int | None = None
    """with --evaluate job: its time limit in minutes; by default that of the training"""
    notify: str | None = None
    """web address that gets one POST of JSON when a run ends, fails, is given up or becomes the champion"""
    mirror: str | None = None
    """folder or URI, as s3://BUCKET/RUN, that checkpoints, journal and weights are copied to behind the training"""
    mirrored_from: Annotated[str | None, tyro.conf.arg(name="from", metavar="STR")] = None
    """mirror of a run to go on from in a fresh --run-dir; what is not given of --train is as it was there"""
    take_over: bool = False
    """with --from: go on although the run is still trained elsewhere; from then on it copies nothing to the mirror"""
    begin_again: bool = False
    """begin a run again whose checkpoints are gone; its former files and its former MLflow run are kept"""
    dry_run: bool = False
    """check everything, show the sbatch script, the config and the DeepSpeed JSON; submit and write nothing"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """the training itself"""


def parse(arguments: list[str]) -> LaunchOptions:
    """Read the flags; those that are not given have the recipe's values.

    A wrong flag exits with status 2 and a message that names the right ones.

    Raises:
        LaunchError: the recipe does not exist, or a flag is another program's.
        ConfigError: a field is swept and given as a flag too.
    """
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in _OTHER_NAMES:
            raise LaunchError(f"there is no {argument.partition('=')[0]}: {_OTHER_NAMES[flag]}")
    default = _defaults(_recipe_name(arguments), _value_of("--from", arguments), _value_of("--run-dir", arguments))
    options = tyro.cli(
        LaunchOptions,
        args=_join_lists(arguments),
        default=default,
        prog="python -m pipeline.launch",
        registry=help_registry(),
    )
    refuse_contradictions(options.sweep, arguments)
    if options.mirrored_from is not None and (options.sweep or options.begin_again):
        raise LaunchError("--from goes on with one run: leave --sweep and --begin-again out")
    return _without_second_mirror(options)


def _without_second_mirror(options: LaunchOptions) -> LaunchOptions:
    """Return the options without a `--mirror` that repeats `--from`, whose mirror a run goes on in anyway.

    Raises:
        LaunchError: the two differ, or `--take-over` has nothing to take over.
    """
    if options.mirrored_from is None:
        if options.take_over:
            raise LaunchError("--take-over belongs to --from, which is not given")
        return options
    if options.mirror is not None and absolute_path(options.mirror) != absolute_path(options.mirrored_from):
        raise LaunchError(
            "--mirror: a run that --from brings goes on in that mirror: leave --mirror out, and give it, without "
            "--from, when the run has ended once and is launched again"
        )
    return dataclasses.replace(options, mirror=None)


def _defaults(recipe_name: str | None, mirror: str | None, run_dir: str | None) -> LaunchOptions:
    """Return the values of all flags that are not given: the recipe's, or those of the run that a mirror holds.

    Args:
        recipe_name: value of `--recipe`.
        mirror: value of `--from`.
        run_dir: value of `--run-dir`; a folder that has this mirror holds the values itself.

    Raises:
        LaunchError: the mirror holds a run of another recipe than the given one.
        MirrorError: the mirror holds no run, or does not answer.
        ConfigError: the run was trained by another version.
    """
    train = None
    if mirror is not None:
        from pipeline.config.serialise import from_dict
        from pipeline.mirror.fetch import read_config_to_bring

        mirrored = read_config_to_bring(absolute_path(mirror), None if run_dir is None else Path(run_dir).expanduser())
        name, train = mirrored.get("recipe"), from_dict(mirrored["train"])
        if None not in (recipe_name, name) and recipe_name != name:
            raise LaunchError(f"--recipe {recipe_name}: the run in the mirror is of {name}: leave --recipe out")
        recipe_name = name if name in RECIPES else recipe_name
    name = recipe_name or DEFAULT_RECIPE
    recipe = RECIPES[name]
    train = train or recipe.train()
    return LaunchOptions(recipe=name, cluster=recipe.cluster, resources=recipe.resources, train=train)


def _join_lists(arguments: list[str]) -> list[str]:
    """Put all values of a repeated list flag behind one flag: the parser would keep those of the last alone."""
    others: list[str] = []
    lists: dict[str, list[str]] = {}
    values: list[str] = others
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in LIST_FLAGS:
            values = lists.setdefault(flag, [])
            if equals:
                values.append(value)
        else:
            if argument.startswith("-"):
                values = others
            values.append(argument)
    return [*others, *(argument for flag, given in lists.items() for argument in (flag, *given))]


def _recipe_name(arguments: list[str]) -> str | None:
    """Return the value of `--recipe`, which decides the defaults of all other flags; None if it is not given."""
    name = _value_of("--recipe", arguments)
    if name is not None and name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise LaunchError(f"--recipe {name} does not exist; there are: {', '.join(RECIPES)}{hint}")
    return name


def _value_of(wanted: str, arguments: list[str]) -> str | None:
    """Return the value of a flag that decides the defaults of others; None if it is not given."""
    if sum(argument.partition("=")[0] == wanted for argument in arguments) > 1:
        raise LaunchError(f"{wanted} is given twice: leave one of them out")
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = argument.partition("=")
        if flag == wanted:
            return value or following
    return None
