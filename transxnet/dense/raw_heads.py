"""What a detection network computes before it chooses boxes: tensors of fixed dimensions, which can be exported."""

from torch import Tensor, nn

from transxnet.dense.anchors import flatten_levels
from transxnet.dense.mask_rcnn import MaskRCNN
from transxnet.dense.retinanet import RetinaNet

__all__ = ["RawHeads"]


class RawHeads(nn.Module):
    """The raw outputs of a detection network for images `[N, 3, H, W]`, H and W multiples of 32.

    Attributes:
        outputs: names of the tensors that `forward` returns. Of a RetinaNet: `class_logits` `[N, A, classes]` and
            `box_deltas` `[N, A, 4]` of all anchors, in the order of `AnchorGrid`. Of a Mask R-CNN: `rpn_logits`
            `[N, A, 1]` and `rpn_deltas` `[N, A, 4]`, and the levels `p2` to `p5` `[N, C, H_l, W_l]` that its other
            heads pool regions from.
    """

    def __init__(self, network: RetinaNet | MaskRCNN) -> None:
        super().__init__()
        self.network = network
        if isinstance(network, RetinaNet):
            self.outputs = ("class_logits", "box_deltas")
        else:
            self.outputs = ("rpn_logits", "rpn_deltas", "p2", "p3", "p4", "p5")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that `outputs` names."""
        network = self.network
        if isinstance(network, RetinaNet):
            logits, deltas = network.head(network.neck(network.backbone.forward_features(images)[1:]))
            return flatten_levels(logits, network.head.num_classes), flatten_levels(deltas, 4)
        levels = network.neck(network.backbone.forward_features(images))
        predictions = network.rpn(levels)
        return flatten_levels(predictions.logits, 1), flatten_levels(predictions.deltas, 4), *levels[:4]
