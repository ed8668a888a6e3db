"""One image from encoded bytes to augmented pixels, in NumPy and OpenCV, without torch.

`decode` decodes the image file (crops of JPEGs with the decoder in `jpeg`), `transforms` crops and resizes,
`randaugment` draws RandAugment's operations, and `operations` holds them. `timm_transforms` runs timm's own transforms
for comparison; it alone imports torch.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.augment.decode import DecodeError, EncodedImage
    from pipeline.augment.timm_transforms import FaithfulAugment
    from pipeline.augment.transforms import EvaluationAugment, TrainAugment

__all__ = ["DecodeError", "EncodedImage", "EvaluationAugment", "FaithfulAugment", "TrainAugment"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "DecodeError": "decode",
        "EncodedImage": "decode",
        "EvaluationAugment": "transforms",
        "FaithfulAugment": "timm_transforms",
        "TrainAugment": "transforms",
    },
)
