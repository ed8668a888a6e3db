"""ImageNet's development kit: the names of the classes, and the ground truth of the validation images."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.sources.classes import ClassList
from sharding.storage import Folder

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


@dataclass(frozen=True)
class Devkit:
    """The content of the development kit.

    Attributes:
        classes: all 1000 classes, sorted by WordNet id.
        wnids: WordNet id by ILSVRC id.
        truth: ILSVRC id of each validation image; that of image number `i + 1` is `truth[i]`.
    """

    classes: ClassList
    wnids: dict[int, str]
    truth: list[int]


def read_devkit(root: Folder) -> Devkit | None:
    """Read the development kit in a folder; None where there is none.

    Raises:
        SourceError: the kit is damaged, or the file is another archive.
    """
    if root.size(DEVKIT) is None:
        return None
    from scipy.io import loadmat

    where = f"{root.location}/{DEVKIT}"
    try:
        with tarfile.open(fileobj=io.BytesIO(root.read(DEVKIT)), mode="r:*") as kit:
            members = {member.name.rpartition("/")[2]: member for member in kit if member.isfile()}
            meta: Any = loadmat(_content(kit, members["meta.mat"]), squeeze_me=True, struct_as_record=True)
            truth = _content(kit, members["ILSVRC2012_validation_ground_truth.txt"]).read()
        synsets = [row for row in np.atleast_1d(meta["synsets"]) if int(row["num_children"]) == 0]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        names = {str(row["WNID"]): str(row["words"]) for row in synsets}
        labels = [int(line) for line in truth.split()]
    except KeyError as error:
        raise SourceError(f"{where} holds no {error}: it is not the ILSVRC2012 development kit") from error
    except Exception as error:  # gzip, tar and scipy's reader raise many kinds of exceptions on damaged bytes
        raise SourceError(f"{where} cannot be read ({error}). Fetch it again.") from error
    return Devkit(ClassList(tuple(ClassInfo(wnid, names[wnid]) for wnid in sorted(names)), DEVKIT), wnids, labels)


def _content(kit: tarfile.TarFile, member: tarfile.TarInfo) -> io.BytesIO:
    stream = kit.extractfile(member)
    assert stream is not None, "a member that is not a regular file"
    return io.BytesIO(stream.read())
