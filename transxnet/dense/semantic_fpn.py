"""Semantic FPN on TransXNet: a class for each pixel.

Source: Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446, section 3, as upstream's recipe for
ADE20K has it. Reported there: mIoU 45.5 (tiny), 48.5 (small), 49.9 (base).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backbone import Backbone
from transxnet.config import Backend
from transxnet.dense.build import build_backbone
from transxnet.dense.fpn import CHANNELS, FeaturePyramid
from transxnet.dense.losses import pixel_cross_entropy
from transxnet.pretrained import WeightsSource
from transxnet.resample import resize_bilinear

__all__ = ["SemanticFPN", "SemanticHead", "resize_logits", "semantic_fpn"]

STRIDES = (4, 8, 16, 32)
HIDDEN = 128
NANO_CHANNELS, NANO_HIDDEN = 64, 32
"""Channels of the pyramid and of the head's sum on the nano backbone, which is this package's own: with upstream's
widths they would be four times as large as that backbone."""


class ConvNormReLU(nn.Module):
    """Convolution 3x3 without bias, BatchNorm, ReLU: `[N, C_in, H, W]` to `[N, C_out, H, W]`."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim_out)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(norm(conv(x)))`."""
        return F.relu(self.norm(self.conv(x)))


class SemanticHead(nn.Module):
    """Bring every level to the finest one's size by convolutions and bilinear upsampling, add them up, classify.

    A level of stride s has max(1, log2(s / 4)) convolutions, with an upsampling by 2 after each but on the finest.

    Args:
        num_classes: number of outputs for each pixel.
        channels: channels of the levels.
        hidden: channels of the sum.
        dropout: rate at which whole channels of the sum are dropped in training.
    """

    def __init__(self, num_classes: int, channels: int = CHANNELS, hidden: int = HIDDEN, dropout: float = 0.1) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for stride in STRIDES:
            count = max(1, (stride // STRIDES[0]).bit_length() - 1)
            dims = [channels, *[hidden] * count]
            self.scales.append(nn.ModuleList(ConvNormReLU(dims[k], dims[k + 1]) for k in range(count)))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits `[N, num_classes, H, W]` in the size of the finest of the levels `[N, channels, H_l, W_l]`."""
        (first,) = self.scales[0]  # pyright: ignore[reportGeneralTypeIssues]
        total = first(levels[0])
        for convs, x in zip(list(self.scales)[1:], levels[1:], strict=True):
            for conv in convs:  # pyright: ignore[reportGeneralTypeIssues]
                x = conv(x)
                height, width = x.shape[-2:]
                x = resize_logits(x, (2 * height, 2 * width))
            total = total + resize_logits(x, tuple(total.shape[-2:]))
        return self.classifier(self.dropout(total))


class SemanticFPN(nn.Module):
    """Backbone with norms on its maps, feature pyramid, semantic head.

    The BatchNorms are plain `nn.BatchNorm2d`; upstream trains the head's and the backbone's as SyncBatchNorm.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        dropout: float = 0.1,
        *,
        channels: int = CHANNELS,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = FeaturePyramid(backbone.config.dims, channels)
        self.head = SemanticHead(num_classes, channels, hidden, dropout)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Return logits, or with labels the losses.

        Args:
            images: `[N, 3, H, W]`, of any size.
            labels: label maps `[N, H, W]` of an integer dtype; 255 marks pixels without a class.

        Returns:
            Without labels, logits `[N, num_classes, ceil(H / 4), ceil(W / 4)]`; `resize_logits` brings them to another
            size. With labels, `{"loss_ce": ...}`, the cross entropy of the logits in the labels' size
            (`pixel_cross_entropy`).
        """
        logits = self.head(self.neck(self.backbone.forward_features(images)))
        if labels is None:
            return logits
        return {"loss_ce": pixel_cross_entropy(resize_logits(logits, tuple(labels.shape[-2:])), labels)}


def resize_logits(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps `[N, C, h, w]` resized bilinearly to `[N, C, *size]`, as upstream (`align_corners=False`)."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return resize_bilinear(logits, (size[0], size[1]))


def semantic_fpn(
    variant: str,
    num_classes: int = 150,
    *,
    drop_path_rate: float | None = None,
    dropout: float = 0.1,
    image_size: int = 224,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> SemanticFPN:
    """Build Semantic FPN on the TransXNet `variant` (`n`, `t`, `s`, `b`), with initial weights.

    Args:
        variant: of the backbone; `n` has a pyramid of 64 channels and a head of 32, the others 256 and 128.
        num_classes: number of classes; ADE20K has 150.
        drop_path_rate: None stands for the rate of upstream's dense recipes (0.1, 0.2, 0.3 for t, s, b).
        dropout: rate at which channels are dropped before the last convolution in training.
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
    channels, hidden = (NANO_CHANNELS, NANO_HIDDEN) if variant == "n" else (CHANNELS, HIDDEN)
    return SemanticFPN(backbone, num_classes, dropout, channels=channels, hidden=hidden)
