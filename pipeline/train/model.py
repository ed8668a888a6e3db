"""The network of a training, and the weights that a new run starts from."""

import torch
import torch.distributed as dist
from torch import nn

from pipeline.common.errors import TrainingError
from pipeline.config.schema import ConfigError, TrainConfig
from pipeline.engine.distributed import World, broadcast_from_main
from pipeline.tasks import find_task
from pipeline.weights.load import initialise


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The network of `config`, its weights drawn from the seed alone.

    Raises:
        TrainingError: there is no such network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return find_task(config.task).network(config, num_classes)
        except ValueError as error:
            raise TrainingError(f"--train.model: {error}") from error


def initialise_on_all_ranks(model: nn.Module, config: TrainConfig, world: World) -> str:
    """Rank 0 reads the weights that a new run starts from, and broadcasts them. Collective.

    Args:
        model: the network, on the CPU; its weights are replaced.
        config: of the training, whose `initialise_from` names the weights.
        world: this process among the ranks.

    Returns:
        A line on what was loaded; empty but on rank 0.

    Raises:
        TrainingError: on every rank, with rank 0's reason why there are no such weights.
    """
    assert config.initialise_from is not None
    loaded, problem = "", None
    if world.is_main:
        try:
            loaded = initialise(model, config.initialise_from, config.initialise_entry, task=find_task(config.task))
        except ConfigError as error:
            problem = str(error)
    problem = broadcast_from_main(problem)
    if problem is not None:
        raise TrainingError(str(problem))
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    return loaded
