"""Dense networks on TransXNet as upstream's recipes and published files have them.

Each is built by a function with the variant's name, is trained by `network(images, ...truths)`, which returns named
losses, and infers by `network(images, ...)`.
"""

from transxnet.dense.boxes import Detections
from transxnet.dense.mask_rcnn import MaskRCNN, mask_rcnn
from transxnet.dense.raw_heads import RawHeads
from transxnet.dense.retinanet import RetinaNet, retinanet
from transxnet.dense.semantic_fpn import SemanticFPN, resize_logits, semantic_fpn
from transxnet.dense.upstream import from_upstream, to_upstream

__all__ = [
    "Detections",
    "MaskRCNN",
    "RawHeads",
    "RetinaNet",
    "SemanticFPN",
    "from_upstream",
    "mask_rcnn",
    "resize_logits",
    "retinanet",
    "semantic_fpn",
    "to_upstream",
]
