"""The command `python -m pipeline.publish MODEL --to FOLDER|hf://USER/NAME`."""

import tempfile
from pathlib import Path

from pipeline.common.errors import InputError

HUB = "hf://"


def main(model: str, /, *, to: str, license: str | None = None, images: tuple[str, ...] = ()) -> int:
    """Write a classifier as timm and the Hugging Face hub expect it, with a page that describes it.

    Args:
        model: A run directory, a models:/ URI, or a file of weights.
        to: A new folder, or hf://USER/NAME to upload the files to that repository of the hub.
        license: Identifier of the weights' license, for the page; without it the page has a field to fill in.
        images: Image files, folders with images, or shards (.tar): the page gets pictures of what the model sees in
            some of them, as pipeline.look draws them.
    """
    from pipeline.publish.hub import check_repository, upload

    repository = to.removeprefix(HUB) if to.startswith(HUB) else None
    if repository is not None:
        check_repository(repository)
    elif "://" in to:
        raise InputError(f"--to {to}: give a new folder, or {HUB}USER/NAME")
    # Imports torch: a wrong --to is found before.
    from pipeline.publish.folder import publish

    if repository is None:
        folder = publish(model, Path(to).expanduser(), license=license, images=images)
        print(f"published {model} in {folder}\nnext:\n    python -c '{_example(f'local-dir:{folder.resolve()}')}'")
        return 0
    with tempfile.TemporaryDirectory(prefix="publish-") as name:
        folder = publish(model, Path(name) / "model", name=repository, license=license, images=images)
        address = upload(folder, repository)
    print(f"published {model} at {address}\nnext:\n    python -c '{_example(f'hf-hub:{repository}')}'")
    return 0


def _example(name: str) -> str:
    return f'import timm, transxnet.timm; model = timm.create_model("{name}", pretrained=True)'
