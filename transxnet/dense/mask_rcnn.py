"""Mask R-CNN on TransXNet: boxes and masks of objects from proposed regions.

Source: He et al., "Mask R-CNN", arXiv 1703.06870, as upstream's recipe for COCO has it. Reported there, box / mask AP:
44.5 / 40.7 (tiny), 47.7 / 43.1 (small), 48.8 / 43.8 (base).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transxnet.backbone import Backbone
from transxnet.config import Backend
from transxnet.dense import box_head, mask_head
from transxnet.dense.assign import Choose, Sampled, Thresholds, assign, keyed_choice, mix, sample
from transxnet.dense.boxes import Detections
from transxnet.dense.build import build_backbone
from transxnet.dense.fpn import CHANNELS, FeaturePyramid
from transxnet.dense.inputs import check_images, check_truths, image_scale
from transxnet.dense.losses import at_least_fp32
from transxnet.dense.roi import pool_regions
from transxnet.dense.rpn import STRIDES, ProposalNetwork
from transxnet.pretrained import WeightsSource

__all__ = ["MaskRCNN", "Regions", "mask_rcnn", "sample_regions"]

ASSIGNMENT = Thresholds(positive=0.5, negative=0.5, lowest=0.5)
SAMPLES, MOST_POSITIVE = 512, 128
"""Regions of an image that the losses count, and the most positive ones of them."""
POOLED = STRIDES[:4]
"""Strides of the levels that regions are pooled from."""
NANO_CHANNELS, NANO_HIDDEN, NANO_SAMPLES, NANO_POSITIVE, NANO_DEPTH = 64, 256, 32, 8, 1
"""Channels of the pyramid and of the box head, sampled regions, and convolutions of the mask head, on the nano
backbone, which is this package's own: with upstream's numbers they would take many times as long as that backbone."""
RPN, ROI = 1, 2
"""Purposes of an image's draw."""


class Regions(NamedTuple):
    """The sampled regions of an image: positive ones first, each part in ascending order of its numbers.

    Attributes:
        boxes: `[K, 4]`.
        truth: `[P]`, the object of each positive region.
        chosen: their numbers, where the objects' own boxes come before the proposals.
    """

    boxes: Tensor
    truth: Tensor
    chosen: Sampled


def sample_regions(
    proposals: Tensor,
    names: Tensor,
    boxes: Tensor,
    choose: Choose,
    draw: int,
    samples: int = SAMPLES,
    most_positive: int = MOST_POSITIVE,
) -> Regions:
    """Return the regions of an image that the losses count.

    The proposals are assigned first. Then the objects' own boxes are put before them, each assigned to itself.
    Proposals are chosen by their anchors, not by their ranks: where two scores are equal but for rounding, the ranks
    depend on the order in which gradients were summed, and with it on the number of processes.

    Args:
        proposals: `[P, 4]`, best first.
        names: `[P]` int64, different numbers from 0 that say which proposal it is, whatever its rank: its anchor.
        boxes: `[G, 4]` of the image's objects.
        choose: how to choose where there are more candidates than needed.
        draw: the key of this image's choices.
        samples: number of regions.
        most_positive: the most positive ones of them.
    """
    assigned = torch.cat((torch.arange(len(boxes), device=boxes.device), assign(proposals, boxes, ASSIGNMENT)))
    candidates = torch.cat((boxes.to(proposals.dtype), proposals))
    own = -1 - torch.arange(len(boxes), device=boxes.device)
    chosen = sample(assigned, samples, most_positive, choose, draw, torch.cat((own, names)))
    return Regions(candidates[torch.cat(chosen)], assigned[chosen.positive], chosen)


class MaskRCNN(nn.Module):
    """Backbone with norms on its maps, feature pyramid P2 to P6, region proposals, box head, mask head.

    Attributes:
        choose: how the samplers choose among candidates: `choose(names, number, key)`. By default by a hash of a
            candidate's name and the key, so that a choice depends on the candidates and the image's draw alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        choose: Choose = keyed_choice,
        *,
        channels: int = CHANNELS,
        hidden: int = box_head.HIDDEN,
        samples: int = SAMPLES,
        most_positive: int = MOST_POSITIVE,
        mask_depth: int = mask_head.DEPTH,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.choose = choose
        self.samples, self.most_positive = samples, most_positive
        self.neck = FeaturePyramid(backbone.config.dims, channels, extra="pool")
        self.rpn = ProposalNetwork(channels)
        self.box_head = box_head.BoxHead(num_classes, channels, hidden)
        self.mask_head = mask_head.MaskHead(num_classes, channels, mask_depth)

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor] | None = None,
        labels: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        draws: Sequence[int] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Return the losses of a batch with truths, or the detections of a batch without.

        Args:
            images: `[N, 3, H, W]`, each image in the top left corner, zero beyond it.
            sizes: (height, width) of each image.
            boxes: of each image's objects, `[G, 4]` fp32, x1, y1, x2, y2 in pixels; G may be 0.
            labels: the classes `[G]` of each image's objects, from 0.
            masks: of each image's objects, `[G, h, w]` bool or uint8 in pixels of the image, of any size h x w from
                its top left corner that holds them.
            draws: a 64-bit key for each image. The samplers' choices are a function of it and of the candidates.

        Returns:
            With truths `loss_rpn_cls`, `loss_rpn_bbox`, `loss_cls`, `loss_bbox` and `loss_mask`; without them the
            result of `detect`.

        Raises:
            ValueError: the inputs do not fit together.
        """
        if boxes is None or labels is None or masks is None:
            return self.detect(images, sizes)
        check_truths(images, sizes, boxes, labels, masks)
        draws = [0] * len(images) if draws is None else draws
        levels = self.levels(images, sizes)
        predictions = self.rpn(levels)
        losses = self.rpn.losses(predictions, sizes, boxes, self.choose, [mix(draw, RPN) for draw in draws])
        regions = [
            sample_regions(
                found.boxes, found.anchors, truths, self.choose, mix(draw, ROI), self.samples, self.most_positive
            )
            for found, truths, draw in zip(self.rpn.propose(predictions, sizes), boxes, draws, strict=True)
        ]
        return {**losses, **self.region_losses(levels, regions, boxes, labels, masks)}

    def levels(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the pyramid's levels P2 to P6, `[N, 256, H_l, W_l]`."""
        check_images(images, sizes)
        return self.neck(self.backbone.forward_features(images))

    def region_losses(
        self,
        levels: Sequence[Tensor],
        regions: Sequence[Regions],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        masks: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of both heads on the sampled regions of each image."""
        background = self.box_head.num_classes
        targets, truths, positive, bitmaps = [], [], [], []
        for of_image, own, classes, shapes in zip(regions, boxes, labels, masks, strict=True):
            count = len(of_image.truth)
            target = torch.full((len(of_image.boxes),), background, device=own.device)
            target[:count] = classes[of_image.truth]
            truth = of_image.boxes.new_zeros((len(of_image.boxes), 4))
            truth[:count] = own[of_image.truth].to(truth.dtype)
            targets.append(target)
            truths.append(truth)
            positive.append(of_image.boxes[:count])
            bitmaps.append(mask_head.mask_targets(shapes, positive[-1], of_image.truth))
        references = [of_image.boxes for of_image in regions]
        logits, deltas = self.box_head(pool_regions(levels[:4], POOLED, references, box_head.REGION))
        target = torch.cat(targets)
        losses = self.box_head.losses(logits, deltas, torch.cat(references), target, torch.cat(truths))
        mask_logits = self.mask_head(pool_regions(levels[:4], POOLED, positive, mask_head.REGION))
        own_class = target[target < background]
        return {**losses, **self.mask_head.losses(mask_logits, own_class, torch.cat(bitmaps))}

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
            original_sizes: (height, width) of each image before it was resized. Boxes and masks are in its pixels; by
                default in those of the batch.
        """
        levels = self.levels(images, sizes)
        proposals = [found.boxes for found in self.rpn.propose(self.rpn(levels), sizes)]
        return self.detect_regions(levels, proposals, sizes, original_sizes or sizes)

    @torch.no_grad()
    def detect_regions(
        self,
        levels: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return the detections of each image among its proposals `[P, 4]`; the arguments are those of `detect`."""
        logits, deltas = self.box_head(pool_regions(levels[:4], POOLED, proposals, box_head.REGION))
        counts = [len(of_image) for of_image in proposals]
        found = [
            self.box_head.detect(scores, corrections, of_image, size, original)
            for scores, corrections, of_image, size, original in zip(
                logits.split(counts), deltas.split(counts), proposals, sizes, original_sizes, strict=True
            )
        ]
        inner = [
            boxes * image_scale(boxes, size, original)
            for (boxes, _, _), size, original in zip(found, sizes, original_sizes, strict=True)
        ]
        mask_logits = self.mask_head(pool_regions(levels[:4], POOLED, inner, mask_head.REGION))
        detections, start = [], 0
        for (boxes, scores, labels), original in zip(found, original_sizes, strict=True):
            own = mask_logits[torch.arange(start, start + len(labels), device=labels.device), labels]
            masks = mask_head.paste_masks(at_least_fp32(own).sigmoid(), boxes, original)
            detections.append(Detections(boxes, scores, labels, masks))
            start += len(labels)
        return detections


def mask_rcnn(
    variant: str,
    num_classes: int = 80,
    *,
    drop_path_rate: float | None = None,
    image_size: int = 224,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> MaskRCNN:
    """Build Mask R-CNN on the TransXNet `variant` (`n`, `t`, `s`, `b`), with initial weights.

    Args:
        variant: of the backbone; `n` has a pyramid of 64 channels, a box head of 256, 32 sampled regions of an image
            and a mask head of one convolution, the others 256, 1024, 512 and four.
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
        variant, drop_path_rate=drop_path_rate, image_size=image_size, backend=backend, pretrained=pretrained
    )
    if variant not in ("n", "transxnet_n"):
        return MaskRCNN(backbone, num_classes)
    return MaskRCNN(
        backbone,
        num_classes,
        channels=NANO_CHANNELS,
        hidden=NANO_HIDDEN,
        samples=NANO_SAMPLES,
        most_positive=NANO_POSITIVE,
        mask_depth=NANO_DEPTH,
    )
