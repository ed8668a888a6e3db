"""Mask R-CNN's box head: the class of each region and its corrected box.

Source: He et al., arXiv 1703.06870, section 3, with the two fully connected layers of Lin et al., arXiv 1612.03144.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.dense.boxes import clip_boxes, decode_boxes, encode_boxes, suppress
from transxnet.dense.fpn import CHANNELS
from transxnet.dense.inputs import image_scale
from transxnet.dense.losses import at_least_fp32

__all__ = ["REGION", "BoxHead"]

REGION = 7
"""Side of a region's features."""
HIDDEN = 1024
STDS = (0.1, 0.1, 0.2, 0.2)
"""What the targets of a box are divided by."""
SCORE, OVERLAP, DETECTIONS = 0.05, 0.5, 100
"""Of inference: the lowest score, the overlap of duplicates, the most detections of an image."""


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits (the last one is for no object) and a box for each class."""

    def __init__(self, num_classes: int, channels: int = CHANNELS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shared = nn.ModuleList((nn.Linear(channels * REGION**2, hidden), nn.Linear(hidden, hidden)))
        self.class_logits = nn.Linear(hidden, num_classes + 1)
        self.box_deltas = nn.Linear(hidden, num_classes * 4)
        for layer in self.shared:
            nn.init.xavier_uniform_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        for layer, std in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[K, num_classes + 1]` and deltas `[K, num_classes, 4]` of features `[K, channels, 7, 7]`."""
        x = regions.flatten(1)
        for layer in self.shared:
            x = F.relu(layer(x))
        return self.class_logits(x), self.box_deltas(x).unflatten(1, (self.num_classes, 4))

    def losses(
        self, logits: Tensor, deltas: Tensor, references: Tensor, labels: Tensor, truths: Tensor
    ) -> dict[str, Tensor]:
        """Return the cross entropy and the L1 loss of the boxes, both divided by the number of sampled regions.

        Args:
            logits: `[K, num_classes + 1]` of the sampled regions of all images.
            deltas: `[K, num_classes, 4]`.
            references: `[K, 4]`, the regions' boxes.
            labels: `[K]`, `num_classes` where there is no object.
            truths: `[K, 4]`, the boxes of the regions' objects; any values where there is none.
        """
        count = max(len(labels), 1)
        positive = (labels < self.num_classes).nonzero().flatten()
        targets = encode_boxes(references[positive], truths[positive], STDS)
        chosen = at_least_fp32(deltas[positive, labels[positive]])
        return {
            "loss_cls": F.cross_entropy(at_least_fp32(logits), labels, reduction="sum") / count,
            "loss_bbox": (chosen - targets).abs().sum() / count,
        }

    def detect(
        self, logits: Tensor, deltas: Tensor, references: Tensor, size: tuple[int, int], original: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes `[D, 4]`, scores `[D]` and classes `[D]` of one image's regions, best first.

        Args:
            logits: `[K, num_classes + 1]`.
            deltas: `[K, num_classes, 4]`.
            references: `[K, 4]`, the regions' boxes.
            size: (height, width) of the image in the batch; boxes are cut at its sides.
            original: (height, width) of the image before it was resized; the result is in its pixels.
        """
        scores = at_least_fp32(logits).softmax(dim=1)[:, : self.num_classes]
        boxes = clip_boxes(decode_boxes(references[:, None], at_least_fp32(deltas), STDS), size)
        boxes = boxes / image_scale(boxes, size, original)
        at, label = (scores > SCORE).nonzero(as_tuple=True)
        boxes, scores = boxes[at, label], scores[at, label]
        keep = suppress(boxes, scores, label, OVERLAP, DETECTIONS)
        return boxes[keep], scores[keep], label[keep]
