"""The command `python -m pipeline.publish MODEL --to FOLDER`: a model as the Hugging Face hub and timm expect it.

`folder` writes the files: weights, timm's configuration, the model card and a page (`page`). `hub` uploads them.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.publish.folder import PublishError, publish

__all__ = ["PublishError", "publish"]

__getattr__ = lazy_attributes(__name__, {"PublishError": "folder", "publish": "folder"})
