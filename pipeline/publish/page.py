"""The page of a published model: what it is, how good, from what, and how to load it."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.common.secrets import mask_secrets
from pipeline.look.gallery import Picture
from pipeline.weights.card import ModelCard
from pipeline.weights.rows import origin_rows, result_rows

PAGE_NAME = "README.md"


def write_page(
    folder: Path,
    card: ModelCard,
    name: str,
    command: str,
    license: str | None,
    pictures: Sequence[Picture] = (),
) -> None:
    """Write `README.md` with the hub's header.

    Args:
        folder: folder of the files.
        card: the model's card.
        name: name of the model, such as `USER/NAME`.
        command: command of the training; empty if unknown.
        license: identifier of the weights' license; None leaves a field to fill in.
        pictures: those in the folder `pictures/`.
    """
    page = _page(card, name, mask_secrets(command), license, pictures)
    (folder / PAGE_NAME).write_text(page, encoding="utf-8")


def _page(card: ModelCard, name: str, command: str, license: str | None, pictures: Sequence[Picture]) -> str:
    rows = {
        **result_rows(card),
        "trained for": f"{card.step:,} steps, {card.epoch:.4g} epochs" if card.step else "unknown",
        **origin_rows(card),
    }
    table = "\n".join(f"| {label} | {value} |" for label, value in rows.items())
    trained = f"\nTrained with\n\n```bash\n{command}\n```\n" if command else ""
    shown = "".join(f"\n{p.title}. {p.caption}\n\n![{p.title}](pictures/{p.name}.png)\n" for p in pictures)
    seen = f"\n## What it sees\n{shown}" if shown else ""
    is_on_hub = "/" in name
    place = f"hf-hub:{name}" if is_on_hub else "local-dir:FOLDER"
    hint = (
        "FOLDER is the folder of this page. Once it is on the hub, write `hf-hub:USER/NAME` for `local-dir:FOLDER`, "
        "and `USER/NAME` in transformers.\n\n"
    )
    elsewhere = "" if is_on_hub else hint
    # Within the header a comment is the field to fill in: the hub shows "other" until then.
    terms = license or "other  # fill in: how others may use these weights"
    return f"""---
library_name: timm
pipeline_tag: image-classification
license: {terms}
tags:
- image-classification
- timm
- transxnet
---

# {name}

TransXNet ({card.name}), an image classifier. Paper: [arXiv 2310.19380](https://arxiv.org/abs/2310.19380).

| model | {card.name} |
|---|---|
{table}
{trained}
## How to load it

{elsewhere}With timm (and the package `transxnet`, which adds the architecture):

```python
import timm
import transxnet.timm

model = timm.create_model("{place}", pretrained=True)
```

In transformers:

```python
import transxnet.timm
from transformers import TimmWrapperForImageClassification

model = TimmWrapperForImageClassification.from_pretrained("{name if is_on_hub else "FOLDER"}")
```

With `transxnet` alone:

```python
import transxnet

model = transxnet.{card.name}(pretrained="model.safetensors")
```
{seen}"""
