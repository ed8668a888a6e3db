"""All pictures of a model, and the page that shows them."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from pipeline.augment.transforms import evaluation_pixels
from pipeline.config.schema import AugmentConfig
from pipeline.look import pictures
from pipeline.look.images import NamedImage
from pipeline.tasks.normalise import Normalise
from pipeline.weights.card import ModelCard
from pipeline.weights.rows import result_rows
from transxnet import TransXNet
from transxnet.inspection import (
    attention_of_position,
    backbone_of,
    dynamic_kernels,
    effective_receptive_fields,
    grad_cam,
)

PAGE_NAME = "index.html"
LEAST_ROWS = 4
"""Rows of a map that Grad-CAM needs to show a place: images of the demo leave one at the last stage."""
GUESSES = 2
"""Classes of an image that Grad-CAM is drawn for."""
DPI = 110


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    name: str
    """Name of its file, without `.png`."""
    title: str
    """What it shows, in a few words."""
    caption: str
    """How to read it."""
    content: Figure | NDArray[np.uint8]
    """What is drawn: a figure, or pixels uint8 [H, W, 3]."""


def draw_pictures(
    network: nn.Module, card: ModelCard, images: Sequence[NamedImage], position: tuple[float, float]
) -> Iterator[Picture]:
    """Draw one picture after the other.

    Args:
        network: in evaluation mode, on the CPU.
        card: its card.
        images: what it looks at.
        position: x and y, as shares of the image, whose attention is drawn.
    """
    names = [(name or wnid).split(",")[0] or f"class {k}" for k, (wnid, name) in enumerate(card.classes)]
    answers = [card.of_task.overlay(network, card.preprocessing, names, image.pixels) for image in images]
    found = [answer for answer in answers if answer is not None]
    if found:
        yield Picture(
            "answers",
            "What the model finds",
            "Each image, and the model's answer over it.",
            pictures.stack([image.pixels for image in images], found),
        )
    crops = [evaluation_pixels(image.encoded, card.image_size, card.preprocessing.evaluation_crop) for image in images]
    normalise = Normalise(AugmentConfig(mean=card.preprocessing.mean, std=card.preprocessing.std))
    batch = normalise(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), torch.device("cpu"))
    if isinstance(network, TransXNet):
        yield _grad_cam(network, batch, crops, names)
    backbone = backbone_of(network)
    fields = sum(effective_receptive_fields(backbone, image[None]) for image in batch)
    assert isinstance(fields, torch.Tensor)
    yield Picture(
        "receptive_field",
        "Effective receptive field of each stage",
        f"How much the centre of a stage's map depends on each pixel: gradients over {len(images)} images, on a "
        "logarithmic scale. The frame holds half of them.",
        pictures.receptive_fields(fields.numpy()),
    )
    yield Picture(
        "kernels",
        "Kernels that IDConv makes for each image",
        "Depthwise kernels of each stage's last block, of the channels that differ most between the images: the mean, "
        "and what is added for each image, on a scale of its own. Red is positive, blue negative.",
        pictures.kernels(crops, [kernels.numpy() for kernels in dynamic_kernels(backbone, batch)]),
    )
    shares = [heads.mean(1).numpy() for heads in attention_of_position(backbone, batch, position)]
    # Small images leave one key, which has all the attention.
    if max(stage[0].size for stage in shares) > 1:
        yield Picture(
            "attention",
            "Attention of one position",
            "Where OSRA of each stage's last block attends from the marked position, over its coarse grid of keys: the "
            "mean of the heads, with its largest share.",
            pictures.attention(crops, shares, position),
        )


def write_gallery(folder: Path, card: ModelCard, source: str, drawn: Sequence[Picture]) -> Path:
    """Write the pictures as PNG files, and the page; return the page's path.

    Args:
        folder: made if it is missing.
        card: of the model.
        source: where the model comes from, in words.
        drawn: the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for picture in drawn:
        write_picture(folder / f"{picture.name}.png", picture)
    (folder / PAGE_NAME).write_text(_page(card, source, drawn), encoding="utf-8")
    return folder / PAGE_NAME


def write_picture(path: Path, picture: Picture) -> None:
    """Write one picture as a PNG file."""
    if isinstance(picture.content, Figure):
        picture.content.savefig(path, dpi=DPI)
    else:
        from PIL import Image

        Image.fromarray(picture.content).save(path)


def _grad_cam(
    network: TransXNet, batch: torch.Tensor, crops: Sequence[NDArray[np.uint8]], names: Sequence[str]
) -> Picture:
    with torch.no_grad():
        maps = network.stage_maps(batch)
        probabilities = network.classifier(maps[-1]).float().softmax(1)
    stage = max(k for k, x in enumerate(maps) if k == 0 or x.shape[2] >= LEAST_ROWS)
    best = probabilities.topk(min(GUESSES, len(names)))
    columns = []
    for k in range(best.indices.shape[1]):
        classes = best.indices[:, k].tolist()
        shares = best.values[:, k].tolist()
        titles = [f"{names[label]}  {100 * share:.1f} %" for label, share in zip(classes, shares, strict=True)]
        columns.append((titles, grad_cam(network, batch, classes, stage).numpy()))
    return Picture(
        "grad_cam",
        "What speaks for a class",
        f"Grad-CAM at stage {stage + 1} for the likeliest classes, with their probabilities.",
        pictures.grad_cam(crops, columns),
    )


def _page(card: ModelCard, source: str, drawn: Sequence[Picture]) -> str:
    rows = {"model": card.name, "from": source, **result_rows(card)}
    table = "\n".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    figures = "\n".join(
        f'<h2>{html.escape(p.title)}</h2>\n<p>{html.escape(p.caption)}</p>\n<a href="{p.name}.png">'
        f'<img src="{p.name}.png" alt="{html.escape(p.title)}"></a>'
        for p in drawn
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(card.name)}: what it sees</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }}
th {{ text-align: left; vertical-align: top; padding-right: 1.5rem; font-weight: normal; color: #666; }}
td {{ overflow-wrap: anywhere; }}
h2 {{ margin-bottom: 0; }}
p {{ margin-top: 0.2rem; color: #555; }}
</style>
<h1>{html.escape(card.name)}: what it sees</h1>
<table>
{table}
</table>
{figures}
</html>
"""
