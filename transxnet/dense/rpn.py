"""The region proposal network: boxes that may hold an object, whatever its class.

Source: Ren et al., "Faster R-CNN", arXiv 1506.01497, section 3, as upstream's recipe for Mask R-CNN has it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.dense.anchors import AnchorGrid, flatten_levels
from transxnet.dense.assign import Choose, Sampled, Thresholds, assign, sample
from transxnet.dense.boxes import clip_boxes, decode_boxes, encode_boxes, suppress
from transxnet.dense.fpn import CHANNELS
from transxnet.dense.losses import at_least_fp32

__all__ = ["STRIDES", "Predictions", "ProposalNetwork", "Proposals"]

STRIDES = (4, 8, 16, 32, 64)
SCALES = (8.0,)
ASSIGNMENT = Thresholds(positive=0.7, negative=0.3, lowest=0.3)
SAMPLES, MOST_POSITIVE = 256, 128
"""Anchors of an image that the losses count, and the most positive ones of them."""
TRAINING_CANDIDATES, CANDIDATES, OVERLAP, PROPOSALS = 2000, 1000, 0.7, 1000
"""Most candidates of a level in training and in inference, overlap of duplicates, most proposals of an image."""


class Predictions(NamedTuple):
    """The network's outputs by level, finest first.

    Attributes:
        logits: of an object, `[N, anchors, H_l, W_l]`.
        deltas: of its box, `[N, anchors * 4, H_l, W_l]`.
    """

    logits: list[Tensor]
    deltas: list[Tensor]

    def grid(self) -> list[tuple[int, int]]:
        """Return (rows, columns) of each level."""
        return [(x.shape[-2], x.shape[-1]) for x in self.logits]


class Proposals(NamedTuple):
    """The proposals of an image, best first.

    Attributes:
        boxes: `[P, 4]`.
        scores: `[P]`, in (0, 1).
        anchors: `[P]` int64, the anchor that each was made of (`AnchorGrid.names`).
    """

    boxes: Tensor
    scores: Tensor
    anchors: Tensor


class ProposalNetwork(nn.Module):
    """A 3x3 convolution and two 1x1 convolutions on each level P2 to P6, with the same weights on all.

    Attributes:
        anchors: the anchors of all levels.
    """

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.anchors = AnchorGrid(STRIDES, SCALES)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, self.anchors.per_cell, 1)
        self.box_deltas = nn.Conv2d(channels, self.anchors.per_cell * 4, 1)
        for conv in (self.conv, self.objectness, self.box_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """Return the predictions for the levels `[N, channels, H_l, W_l]`."""
        hidden = [F.relu(self.conv(x)) for x in levels]
        return Predictions([self.objectness(x) for x in hidden], [self.box_deltas(x) for x in hidden])

    def sample(
        self,
        grid: Sequence[tuple[int, int]],
        size: tuple[int, int],
        boxes: Tensor,
        choose: Choose,
        draw: int,
    ) -> tuple[Sampled, Tensor]:
        """Return the anchors of an image that the losses count, and the truth of each positive one.

        Candidates are numbered among the anchors of the image's own padding, so that a choice does not depend on the
        other images of the batch.

        Args:
            grid: (rows, columns) of each level.
            size: the image's (height, width).
            boxes: `[G, 4]` of its objects.
            choose: how to choose where there are more candidates than needed.
            draw: the key of this image's choices.

        Returns:
            Indices among all anchors, and the index of the truth of each positive one.
        """
        anchors = torch.cat(self.anchors.boxes(grid, boxes.device))
        valid = self.anchors.valid(grid, size, boxes.device).nonzero().flatten()
        assigned = assign(anchors[valid], boxes, ASSIGNMENT)
        chosen = sample(assigned, SAMPLES, MOST_POSITIVE, choose, draw)
        return Sampled(valid[chosen.positive], valid[chosen.negative]), assigned[chosen.positive]

    def losses(
        self,
        predictions: Predictions,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor],
        choose: Choose,
        draws: Sequence[int],
    ) -> dict[str, Tensor]:
        """Return the cross entropy of objectness and the L1 loss of the boxes, both divided by the sampled anchors.

        An image without positive, or without negative, anchors counts one for them.
        """
        grid = predictions.grid()
        anchors = torch.cat(self.anchors.boxes(grid, predictions.logits[0].device))
        logits = flatten_levels(predictions.logits, 1).squeeze(-1)
        deltas = flatten_levels(predictions.deltas, 4)
        class_loss, box_loss, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for image, (size, truths, draw) in enumerate(zip(sizes, boxes, draws, strict=True)):
            (positive, negative), truth = self.sample(grid, size, truths, choose, draw)
            chosen = at_least_fp32(logits[image, torch.cat((positive, negative))])
            is_object = (torch.arange(len(chosen), device=chosen.device) < len(positive)).to(chosen.dtype)
            class_loss = class_loss + F.binary_cross_entropy_with_logits(chosen, is_object, reduction="sum")
            targets = encode_boxes(anchors[positive], truths[truth])
            box_loss = box_loss + (at_least_fp32(deltas[image, positive]) - targets).abs().sum()
            count += max(len(positive), 1) + max(len(negative), 1)
        return {"loss_rpn_cls": class_loss / count, "loss_rpn_bbox": box_loss / count}

    @torch.no_grad()
    def propose(self, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """Return the proposals of each image, at most 1000.

        In training more candidates of each level take part than in inference.
        """
        candidates = TRAINING_CANDIDATES if self.training else CANDIDATES
        grid = predictions.grid()
        anchors = self.anchors.boxes(grid, predictions.logits[0].device)
        names = self.anchors.names(grid, predictions.logits[0].device)
        found = []
        for image, size in enumerate(sizes):
            parts = []
            for level, (logits, deltas) in enumerate(zip(predictions.logits, predictions.deltas, strict=True)):
                of_level = at_least_fp32(flatten_levels([logits[image : image + 1]], 1)).flatten().sigmoid()
                scores, order = of_level.sort(descending=True, stable=True)
                scores, order = scores[:candidates], order[:candidates]
                chosen = at_least_fp32(flatten_levels([deltas[image : image + 1]], 4)[0, order])
                boxes = clip_boxes(decode_boxes(anchors[level][order], chosen), size)
                parts.append((boxes, scores, torch.full_like(order, level), names[level][order]))
            boxes, scores, levels, name = (torch.cat(column) for column in zip(*parts, strict=True))
            whole = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero().flatten()
            keep = whole[suppress(boxes[whole], scores[whole], levels[whole], OVERLAP, PROPOSALS)]
            found.append(Proposals(boxes[keep], scores[keep], name[keep]))
        return found
