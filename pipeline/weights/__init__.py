"""Weights of a model without optimizer state: `export` writes them at the end of a training, `load` reads them.

`card` is the file beside them that tells how to use them and where they come from.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.weights.card import ModelCard
    from pipeline.weights.export import export_weights
    from pipeline.weights.load import LoadedModel, check_initial, initialise, load_model

__all__ = ["LoadedModel", "ModelCard", "check_initial", "export_weights", "initialise", "load_model"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "LoadedModel": "load",
        "ModelCard": "card",
        "check_initial": "load",
        "export_weights": "export",
        "initialise": "load",
        "load_model": "load",
    },
)
