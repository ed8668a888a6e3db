"""RetinaNet on TransXNet: boxes from dense anchors.

Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, as upstream's recipe for COCO has it.
Reported there: box AP 43.1 (tiny), 46.4 (small), 47.6 (base).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from transxnet.backbone import Backbone
from transxnet.config import Backend
from transxnet.dense.anchors import AnchorGrid, flatten_levels
from transxnet.dense.assign import IGNORED, NEGATIVE, Thresholds, assign
from transxnet.dense.boxes import Detections, clip_boxes, decode_boxes, encode_boxes, suppress
from transxnet.dense.build import build_backbone
from transxnet.dense.fpn import CHANNELS, FeaturePyramid
from transxnet.dense.inputs import check_images, check_truths, image_scale
from transxnet.dense.losses import at_least_fp32
from transxnet.pretrained import WeightsSource

__all__ = ["RetinaHead", "RetinaNet", "retinanet"]

NORM_STAGES = (1, 2, 3)
"""Stages whose maps the pyramid takes; upstream has no norm on the first stage's map, which feeds nothing."""
STRIDES = (8, 16, 32, 64, 128)
SCALES = tuple(4 * 2 ** (octave / 3) for octave in range(3))
ASSIGNMENT = Thresholds(positive=0.5, negative=0.4, lowest=0.0)
ALPHA, GAMMA = 0.25, 2.0
PRIOR = 0.01
"""Probability of every class at every anchor before training."""
SCORE, CANDIDATES, OVERLAP, DETECTIONS = 0.05, 1000, 0.5, 100
"""Of inference: the lowest score, the most candidates of a level, the overlap of duplicates, the most detections."""


class RetinaHead(nn.Module):
    """Two towers of four 3x3 convolutions on each level, with the same weights on all, and their predictions."""

    def __init__(self, num_classes: int, anchors: int, channels: int = CHANNELS, depth: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.box_convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.class_logits = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return each level's logits `[N, anchors * num_classes, H, W]` and deltas `[N, anchors * 4, H, W]`."""
        logits, deltas = [], []
        for x in levels:
            towers = []
            for convs in (self.class_convs, self.box_convs):
                tower = x
                for conv in convs:
                    tower = F.relu(conv(tower))
                towers.append(tower)
            logits.append(self.class_logits(towers[0]))
            deltas.append(self.box_deltas(towers[1]))
        return logits, deltas


class RetinaNet(nn.Module):
    """Backbone with norms on its last three maps, feature pyramid P3 to P7, RetinaNet's head.

    Attributes:
        anchors: the anchors of all levels.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.anchors = AnchorGrid(STRIDES, SCALES)
        self.neck = FeaturePyramid(backbone.config.dims[1:], extra="convs")
        self.head = RetinaHead(num_classes, self.anchors.per_cell)

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor] | None = None,
        labels: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Return the losses of a batch with truths, or the detections of a batch without.

        Args:
            images: `[N, 3, H, W]`, each image in the top left corner, zero beyond it.
            sizes: (height, width) of each image.
            boxes: of each image's objects, `[G, 4]` fp32, x1, y1, x2, y2 in pixels; G may be 0.
            labels: the classes `[G]` of each image's objects, from 0.

        Returns:
            `{"loss_cls": ..., "loss_bbox": ...}` with boxes and labels, both divided by the number of positive anchors
            of the batch; without them the result of `detect`.

        Raises:
            ValueError: the inputs do not fit together.
        """
        if boxes is None or labels is None:
            return self.detect(images, sizes)
        check_truths(images, sizes, boxes, labels)
        logits, deltas, grid = self.predict(images, sizes)
        assigned = self.assign(grid, images, sizes, boxes)
        return _losses(logits, deltas, torch.cat(grid[1]), assigned, boxes, labels)

    def predict(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, "Grid"]:
        """Return class logits `[N, A, num_classes]` and deltas `[N, A, 4]` of all anchors, and the anchors by level."""
        check_images(images, sizes)
        levels = self.neck(self.backbone.forward_features(images)[1:])
        logits, deltas = self.head(levels)
        grid = [(x.shape[-2], x.shape[-1]) for x in levels]
        return (
            flatten_levels(logits, self.head.num_classes),
            flatten_levels(deltas, 4),
            (grid, self.anchors.boxes(grid, images.device)),
        )

    def assign(
        self, grid: "Grid", images: Tensor, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return for each image the index of every anchor's truth, `[A]` int64, `NEGATIVE` or `IGNORED`.

        Anchors beyond the image's own padding are ignored, and truths cannot take them.
        """
        anchors, assigned = torch.cat(grid[1]), []
        for size, truths in zip(sizes, boxes, strict=True):
            valid = self.anchors.valid(grid[0], size, images.device)
            result = torch.full((len(anchors),), IGNORED, device=images.device)
            result[valid] = assign(anchors[valid], truths, ASSIGNMENT)
            assigned.append(result)
        return assigned

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Return at most 100 detections of each image.

        Args:
            images: `[N, 3, H, W]`, as in `forward`.
            sizes: (height, width) of each image in the batch.
            original_sizes: (height, width) of each image before it was resized. The boxes are in its pixels, and
                duplicates are suppressed there; by default in the pixels of the batch.
        """
        logits, deltas, (_, anchors) = self.predict(images, sizes)
        counts = [len(level) for level in anchors]
        found = []
        for image, size in enumerate(sizes):
            parts = []
            levels = zip(logits[image].split(counts), deltas[image].split(counts), anchors, strict=True)
            for level_logits, level_deltas, level_anchors in levels:
                scores = at_least_fp32(level_logits).sigmoid()
                at, label = (scores > SCORE).nonzero(as_tuple=True)
                best, order = scores[at, label].sort(descending=True, stable=True)
                at, label = at[order[:CANDIDATES]], label[order[:CANDIDATES]]
                boxes = clip_boxes(decode_boxes(level_anchors[at], at_least_fp32(level_deltas[at])), size)
                parts.append((boxes, best[:CANDIDATES], label))
            boxes, scores, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            boxes = boxes / image_scale(boxes, size, original_sizes[image] if original_sizes else size)
            keep = suppress(boxes, scores, labels, OVERLAP, DETECTIONS)
            found.append(Detections(boxes[keep], scores[keep], labels[keep]))
        return found


Grid = tuple[list[tuple[int, int]], list[Tensor]]
"""(rows, columns) of each level, and its anchors `[A_l, 4]`."""


def _losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    assigned: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Return the focal loss over valid anchors and the L1 loss over positive ones, divided by the positives.

    An image without a positive anchor counts one.
    """
    table = torch.stack(tuple(assigned))
    positive = table >= 0
    targets = torch.zeros_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
    box_targets = []
    for image, (truths, classes) in enumerate(zip(boxes, labels, strict=True)):
        at = positive[image].nonzero().flatten()
        truth = table[image, at]
        targets[image, at, classes[truth]] = 1
        box_targets.append(encode_boxes(anchors[at], truths[truth]))
    count = positive.sum(dim=1).clamp(min=1).sum()
    focal = ops.sigmoid_focal_loss(at_least_fp32(logits), targets, ALPHA, GAMMA)
    counted = (positive | (table == NEGATIVE))[..., None]
    box_loss = (at_least_fp32(deltas[positive]) - torch.cat(box_targets)).abs().sum()
    return {"loss_cls": (focal * counted).sum() / count, "loss_bbox": box_loss / count}


def retinanet(
    variant: str,
    num_classes: int = 80,
    *,
    drop_path_rate: float | None = None,
    image_size: int = 224,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> RetinaNet:
    """Build RetinaNet on the TransXNet `variant` (`n`, `t`, `s`, `b`), with initial weights.

    Args:
        variant: of the backbone.
        num_classes: number of classes; COCO has 80.
        drop_path_rate: None stands for the rate of upstream's dense recipes (0.1, 0.2, 0.3 for t, s, b).
        image_size: side in pixels that the backbone's position tables are made for.
        backend: of the backbone: `auto`, `reference` or `triton`.
        pretrained: weights of a TransXNet that the backbone starts from: a run directory, a `models:/` URI or a file.

    Raises:
        ValueError: there is no such variant, a value does not fit, or `pretrained` holds no weights of this variant.
        ImportError: `pretrained` is a `models:/` URI and MLflow is not installed.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, needs at least 1")
    backbone = build_backbone(
        variant,
        norm_stages=NORM_STAGES,
        drop_path_rate=drop_path_rate,
        image_size=image_size,
        backend=backend,
        pretrained=pretrained,
    )
    return RetinaNet(backbone, num_classes)
