"""Packs the data that a recipe makes itself into a folder of its own, once."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pipeline.config.schema import ConfigError


def are_packed(output: Path, name: str) -> bool:
    """Whether `output` holds the shards of both splits of the data set `name`."""
    return all((output / f"{name}-{split}.json").exists() for split in ("train", "validation"))


def pack_once(
    output: Path,
    name: str,
    what: str,
    write: Callable[[Path], None],
    form: Literal["auto", "masks", "coco-json"] = "auto",
) -> None:
    """Pack a recipe's own data into the folder `output` unless it holds them.

    Args:
        output: folder of the shards.
        name: prefix of the shards.
        what: name of the data in messages, such as `the digits`.
        write: writes the source of the shards into a folder.
        form: form of that source.

    Raises:
        ConfigError: the folder holds something else, which would get a second data set beside it.
    """
    from sharding.build import BuildOptions, build

    if are_packed(output, name):
        return
    foreign = sorted(path.name for path in output.glob("[!._]*") if not path.name.startswith(f"{name}-"))
    if foreign:
        raise ConfigError(
            f"{what} are not packed into {output}, which holds {foreign[0]}: move it elsewhere, or give its folder "
            "with --train.data.shards"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{name}-"))
    try:
        write(folder)
        build(BuildOptions(source=str(folder), output=str(output), name=name, source_format=form, workers=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
