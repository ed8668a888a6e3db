"""The flags of `python -m pipeline.launch`: those of the launch, of `jobs.Resources`, and of the training."""

import difflib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from jobs import Resources
from pipeline.common.cli import registry
from pipeline.common.errors import PipelineError
from pipeline.config.schema import TrainConfig
from pipeline.config.sweep import refuse_contradictions
from pipeline.recipes import RECIPES

Recipe = Literal["demo", "tiny", "small", "base", "base_384"]
Cluster = Literal["auto", "slurm", "local", "debug"]
LISTS = ("--slurm", "--setup", "--sweep")
"""Flags that take several values, in one go or one at a time."""


class LaunchError(PipelineError, ValueError):
    """A launch that cannot work; the message is for the user."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Train a TransXNet: submit it, follow it, end with a registered model.

    To begin with:
    - the whole system here, in three minutes: `python -m pipeline.launch --recipe demo`
    - on four nodes: `python -m pipeline.launch --nodes 4 --train.data.shards /shared/shards`
    - the defaults of another recipe: `python -m pipeline.launch --recipe base --help`
    """

    recipe: Recipe = "tiny"
    """which training; everything below --train. starts from its values"""
    cluster: Cluster = "auto"
    """where: auto takes SLURM when sinfo answers, else this machine; the demo stays here unless told"""
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
    dry_run: bool = False
    """check everything, show the sbatch script, the config and the DeepSpeed JSON; submit and write nothing"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """the training itself"""


def parse(arguments: list[str]) -> LaunchOptions:
    """Flags over the recipe's values. Exits with status 2 and a message that names the right flags on a wrong one.

    Raises:
        LaunchError: a recipe that does not exist.
        ConfigError: a sweep and a flag that contradict each other.
    """
    name = _recipe_name(arguments)
    recipe = RECIPES[name]
    default = LaunchOptions(
        recipe=name,  # pyright: ignore[reportArgumentType]
        cluster=recipe.cluster,
        resources=recipe.resources,
        train=recipe.train(),
    )
    options = tyro.cli(
        LaunchOptions,
        args=_gathered(arguments),
        default=default,
        prog="python -m pipeline.launch",
        registry=registry(),
    )
    refuse_contradictions(options.sweep, arguments)
    return options


def _gathered(arguments: list[str]) -> list[str]:
    """The arguments with the values of each repeated list together: the parser would keep the last alone."""
    others: list[str] = []
    lists: dict[str, list[str]] = {}
    values: list[str] = others
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in LISTS:
            values = lists.setdefault(flag, [])
            if equals:
                values.append(value)
        else:
            if argument.startswith("-"):
                values = others
            values.append(argument)
    return [*others, *(word for flag, words in lists.items() for word in (flag, *words))]


def _recipe_name(arguments: list[str]) -> str:
    if sum(word.partition("=")[0] == "--recipe" for word in arguments) > 1:
        raise LaunchError("--recipe is given twice: leave one of them out")
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
