"""The command `python -m pipeline.look MODEL --images …`: pictures of what a model sees in images.

`images` reads the images, `pictures` draws what the network makes of them (`transxnet.inspection`), `gallery` writes
the pictures and a page, and `log` adds them to the model's MLflow run.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.look.gallery import Picture, draw_pictures, write_gallery
    from pipeline.look.images import choose_images

__all__ = ["Picture", "choose_images", "draw_pictures", "write_gallery"]

__getattr__ = lazy_attributes(
    __name__,
    {"Picture": "gallery", "choose_images": "images", "draw_pictures": "gallery", "write_gallery": "gallery"},
)
