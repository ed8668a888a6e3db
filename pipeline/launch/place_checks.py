"""The checks of what surrounds a launch: MLflow's addresses in the environment, and the GPUs of the cluster."""

import os

from jobs import Resources
from pipeline.config.schema import TrainConfig
from pipeline.launch.options import LaunchError
from pipeline.run.system import query_gpus


def check_tracking() -> None:
    """Refuse addresses in the environment that MLflow cannot open, and make the paths in them absolute.

    Raises:
        InputError: the message shows the forms of an address.
    """
    from pipeline.tracking.address import VARIABLES, check_address, check_interpreter, use_absolute_addresses

    check_interpreter()
    for variable in VARIABLES:
        address = os.environ.get(variable)
        if address:
            check_address(address, variable)
    use_absolute_addresses()


def check_gpus(config: TrainConfig, resources: Resources, cluster: str) -> None:
    """Refuse CUDA graphs and the kernels where the processes will have no GPUs.

    Args:
        config: the training.
        resources: with the GPUs that the cluster has.
        cluster: where the processes run.

    Raises:
        LaunchError: such a flag is given without GPUs.
    """
    has_gpus = bool(resources.gpus_per_node)
    if resources.gpus_per_node is None and cluster != "slurm":
        has_gpus = bool(query_gpus("name"))
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    asked = {
        "--train.cuda-graphs": config.cuda_graphs,
        "--train.model.backend triton": config.model.backend == "triton" and not interprets,
    }
    for flag, is_given in asked.items():
        if is_given and not has_gpus:
            needed = "ask for them by --gpus-per-node" if cluster == "slurm" else "this machine has none"
            raise LaunchError(f"{flag} needs GPUs: {needed}, or leave it out")
