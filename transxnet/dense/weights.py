"""Start a dense network from the weights of a backbone."""

import os
from collections.abc import Mapping

from torch import Tensor, nn

from transxnet.pretrained import find_weights, load_weights, read_weights

__all__ = ["WeightsSource", "load_backbone", "read_backbone"]

WeightsSource = str | os.PathLike[str]
CLASSIFIER, NORMS = "classifier.", "out_norms."


def read_backbone(source: WeightsSource) -> dict[str, Tensor]:
    """Return the state dict of the weights that `source` refers to, under this package's names, on the CPU.

    Args:
        source: a run directory, a `models:/` URI or a file, as `transxnet.transxnet_t` takes it.

    Raises:
        ValueError: there are no such weights.
        ImportError: `source` is a `models:/` URI and MLflow is not installed.
    """
    return read_weights(find_weights(source))


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load a TransXNet's weights into the backbone of a dense network, as upstream's recipes begin.

    A classifier is left out, and norms on the stage maps that the weights do not have keep their initial values.
    Position bias tables of another image size are resized.

    Args:
        backbone: `network.backbone`.
        state: of a network with or without classifier and norms, under this package's names; it is not changed.

    Returns:
        A line for each tensor that was not loaded as it is.

    Raises:
        ValueError: the weights are of another variant.
    """
    own = backbone.state_dict()
    norms = {key: value for key, value in own.items() if key.startswith(NORMS)}
    fresh = [f"{key} initialised afresh" for key in norms if key not in state]
    taken = {key: value for key, value in state.items() if not key.startswith((CLASSIFIER, NORMS)) or key in norms}
    return [*fresh, *load_weights(backbone, {**norms, **taken})]
