"""What is where in a mirror.

    000001-4f0c9a12/                     all that one run directory has copied: its owner writes here, nobody else
        owner.json                       who the owner is, and its last sign of life
        mlflow.json, attempts.jsonl      as they were then: newer than those of a checkpoint
        step_00000100-8d2b61aa/          a snapshot: files under the names that they have in the run directory
            checkpoints/step_00000100/rank_00000.safetensors …
            config.json, metrics.jsonl, …
            snapshot.json                written last: sizes and digests of all other files
        export-77aa01c3/

Nothing is ever overwritten but `owner.json` and the files beside it: a snapshot that was torn off has no
`snapshot.json`, and its folder's name is used by no other try. A run that goes on elsewhere makes a folder with the
next number, which is then the mirror's owner. The former owner sees it and copies no more, so what two run directories
write is never mixed.
"""

import json
import re
import time
import uuid
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pipeline.mirror.place import MirrorError, Place
from pipeline.run.files import ATTEMPTS_NAME, CHECKPOINTS, EVALUATIONS, step_name
from pipeline.run.mirror_files import PROGRESS_NAME, TARGET_NAME
from pipeline.run.notify import FILE_NAME as NOTIFY_NAME
from pipeline.tracking.state import STATE_NAME

OWNER_NAME, SNAPSHOT_NAME = "owner.json", "snapshot.json"
LIVE_NAMES = (STATE_NAME, ATTEMPTS_NAME)
"""Records of a run that an attempt needs as they were last: they tell of attempts that have saved nothing."""
SCHEMA = 1
EXPORT = "export"
HEARTBEAT_S = 60.0
"""Seconds between two signs of life of an owner that trains."""
ALIVE_S = 300.0
"""Seconds after its last sign of life for which an owner that trains is taken to be alive."""


PRIVATE = (NOTIFY_NAME, TARGET_NAME, PROGRESS_NAME)
"""Files of a run that are not mirrored: they hold secrets, or are of one run directory alone."""
_NAME = r"[^./\x00-\x1f][^/\x00-\x1f]*"
_MIRRORED = re.compile(
    rf"{_NAME}\.jsonl?|{EVALUATIONS}/step_\d{{8,}}\.json|{CHECKPOINTS}/step_\d{{8,}}/{_NAME}|{EXPORT}/(?:{_NAME}/)*{_NAME}"
)
"""The only names that a snapshot may have: whoever writes to the bucket cannot write elsewhere in a run directory."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who writes to a folder of a mirror, and how the run stands there."""

    run: str
    """Id of the run."""
    run_dir: str
    host: str
    state: str
    """`claimed`, or a state of `pipeline.run.status`."""
    time: float
    """Last sign of life, in unix seconds."""
    token: str = ""
    """Of the process that copies; empty: none has yet."""

    @property
    def place(self) -> str:
        """Host and run directory, for messages."""
        return f"{self.host}:{self.run_dir}"

    def is_copy_of(self, tokens: tuple[str, ...]) -> bool:
        """Whether the one who copies is a copy of the run directory whose processes had these tokens."""
        return self.token != "" and self.token not in tokens

    def is_alive(self, now: float) -> bool:
        """Whether the owner trains, by its last sign of life."""
        return self.state == "running" and now - self.time < ALIVE_S


class NewerVersionError(MirrorError):
    """A snapshot that another version of this code has written."""


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot: its `snapshot.json` is there."""

    place: Place
    path: str
    """Path below the mirror's folder."""

    @property
    def is_export(self) -> bool:
        """Whether it holds the exported weights, not a checkpoint."""
        return PurePosixPath(self.path).name.startswith(f"{EXPORT}-")

    @cached_property
    def content(self) -> dict[str, Any]:
        """The object in `snapshot.json`: `step`, `key` and `files`.

        Raises:
            MirrorError: the file is damaged, or of another version.
        """
        try:
            content = json.loads(self.place.read(f"{self.path}/{SNAPSHOT_NAME}"))
            if content["schema"] != SCHEMA:
                raise NewerVersionError(f"{self.path} is of version {content['schema']}, and this code reads {SCHEMA}")
            for name, of in content["files"].items():
                if name in PRIVATE or not _MIRRORED.fullmatch(name):
                    raise MirrorError(f"{self.path} names a file {name!r}")
                if not (isinstance(of["bytes"], int) and isinstance(of["sha256"], str)):
                    raise ValueError(f"size and digest of {name}")
            if not (isinstance(content["step"], int) and isinstance(content["key"], str)):
                raise ValueError("step and key")
        except MirrorError:
            raise
        except FileNotFoundError as error:
            raise MirrorError(f"{self.path}/{SNAPSHOT_NAME} was removed meanwhile") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MirrorError(f"{self.path}/{SNAPSHOT_NAME} is damaged ({type(error).__name__}: {error})") from error
        return content

    @property
    def step(self) -> int:
        """Finished steps of its checkpoint, or of the exported weights."""
        return int(self.content["step"])

    @property
    def key(self) -> str:
        """Digest that tells a checkpoint from another one of the same step."""
        return str(self.content["key"])

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(int(of["bytes"]) for of in self.content["files"].values())


def owners(place: Place) -> list[str]:
    """Names of the owners' folders, oldest first: the last is that of the present owner."""
    return [name for name in place.folders() if name.partition("-")[0].isdigit()]


def new_owner_name(former: list[str]) -> str:
    """Return a name for the folder of the owner that follows on `former`."""
    number = 1 + int(former[-1].partition("-")[0]) if former else 1
    return f"{number:06d}-{uuid.uuid4().hex[:8]}"


def new_snapshot_name(step: int | None) -> str:
    """Return a name that no other snapshot has, of a step or (None) of the exported weights."""
    return f"{EXPORT if step is None else step_name(step)}-{uuid.uuid4().hex[:8]}"


def snapshots(place: Place, owner: str) -> tuple[list[Snapshot], list[str]]:
    """Return the complete snapshots in an owner's folder, in no order, and the names of those that were torn off."""
    paths = [PurePosixPath(path) for path in place.files(owner)]
    complete = {path.parts[0] for path in paths if path.parts[1:] == (SNAPSHOT_NAME,)}
    all_names = {path.parts[0] for path in paths if len(path.parts) > 1} | {*place.folders(owner)}
    return [Snapshot(place, f"{owner}/{name}") for name in complete], sorted(all_names - complete)


def read_owner(place: Place, name: str) -> Owner | None:
    """Read who the owner of a folder is; None if that cannot be read."""
    try:
        content = json.loads(place.read(f"{name}/{OWNER_NAME}"))
        return Owner(**{field.name: content[field.name] for field in fields(Owner) if field.name in content})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_owner(place: Place, name: str, owner: Owner) -> None:
    """Write who the owner of a folder is, as a sign of life."""
    place.put(f"{name}/{OWNER_NAME}", (json.dumps(asdict(owner)) + "\n").encode())


def describe_owner(owner: Owner | None, now: float | None = None) -> str:
    """Describe an owner by its place and its last sign of life."""
    if owner is None:
        return "an unknown run"
    age = max(0.0, (time.time() if now is None else now) - owner.time)
    return f"{owner.place} ({owner.state}, last seen {age:.0f} s ago)"
