"""Images whose classes are in a table, by the names of their files: validation splits of Kaggle and Tiny ImageNet."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from pyarrow import fs

from sharding.errors import SourceError
from sharding.sources.classes import ClassList
from sharding.sources.folder import is_hidden_folder
from sharding.sources.listing import Listing, sample_keys
from sharding.storage import Folder

_WNID = re.compile(r"^n\d{8}$")


def list_annotated(
    root: Folder,
    prefix: str,
    classes_of: Mapping[str, str],
    known: ClassList,
    *,
    source_format: str,
    table: str,
    extensions: tuple[str, ...],
) -> Listing:
    """List the validation images below a folder, at any depth: scripts move some or all of them into class folders.

    Args:
        root: folder of the source.
        prefix: path from `root` to the images, with `/` at its end.
        classes_of: WordNet id of each image, by the name of its file without extension.
        known: all classes.
        source_format: name of the form of the source.
        table: name of the table's file, for messages.
        extensions: endings of the names of images, in lower case.

    Raises:
        SourceError: images are missing, lie there twice, are not in the table, or lie in the folder of another class
            than the table's.
    """
    base = root.folder(prefix.rstrip("/"))
    infos = [
        info
        for info in base.list(recursive=True)
        if info.type == fs.FileType.File
        and info.base_name.lower().endswith(extensions)
        and not info.base_name.startswith(".")
        and not any(map(is_hidden_folder, info.path[len(base.path) + 1 :].split("/")[:-1]))
    ]
    paths = [info.path[len(base.path) + 1 :] for info in infos]
    stems = [info.base_name.rpartition(".")[0] for info in infos]
    unknown = [path for path, stem in zip(paths, stems, strict=True) if stem not in classes_of]
    if unknown:
        raise SourceError(f"{table} has no class for {len(unknown)} images of {prefix}: {', '.join(unknown[:3])}")
    place: dict[str, str] = {}
    for path, stem in zip(paths, stems, strict=True):
        if place.setdefault(stem, path) != path:
            raise SourceError(f"{base.location} holds an image twice: {place[stem]} and {path}. Remove one of them.")
        folders = [part for part in path.split("/")[:-1] if _WNID.match(part)]
        if folders and folders[-1] != classes_of[stem]:
            raise SourceError(
                f"{prefix}{path} lies in the folder of another class than {classes_of[stem]}, its class in {table}. "
                "Move it, or correct the table."
            )
    missing = sorted(classes_of.keys() - place.keys())
    if missing:
        raise SourceError(
            f"{base.location} lacks {len(missing):,} of the {len(classes_of):,} images in {table}, such as "
            f"{missing[0]}. Restore them, or remove their lines from the table."
        )
    of_image = [classes_of[stem] for stem in stems]
    label = known.labels(set(of_image), table)
    names = pa.array([prefix + path for path in paths], pa.string())
    return Listing(
        source_format=source_format,
        split="validation",
        classes=known.classes,
        files=names,
        file=np.arange(len(paths), dtype=np.int32),
        names=names,
        keys=sample_keys([info.base_name for info in infos], [""] * len(infos)),
        labels=np.array([label[wnid] for wnid in of_image], np.int32),
        offsets=np.zeros(len(paths), np.int64),
        sizes=np.array([info.size for info in infos], np.int64),
    )
