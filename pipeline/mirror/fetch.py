"""Brings a run from a mirror into a fresh run directory, so that it goes on there: `pipeline.launch --from`."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.common.atomic import fsync, read_json, replacing
from pipeline.common.errors import PipelineError, one_line
from pipeline.mirror.adopt import adopt_tracking
from pipeline.mirror.claim import claim
from pipeline.mirror.layout import EXPORT, LIVE_NAMES, Snapshot, describe_owner, owners, read_owner, snapshots
from pipeline.mirror.place import MirrorError, Place
from pipeline.run.files import (
    CHECKPOINTS,
    CONFIG_NAME,
    EVALUATIONS,
    MANIFEST_NAME,
    MICRO_BATCH_NAME,
    checkpoints,
    read_evaluations,
    step_name,
)
from pipeline.run.micro_batch import FoundMicroBatch, as_micro_batch
from pipeline.run.mirror_files import read_target, write_target
from pipeline.tasks import Metric, stored_metric
from pipeline.tracking.state import STATE_NAME


class _DamagedError(PipelineError, ValueError):
    """A snapshot that cannot be used; the message names the file and the fault."""


def read_config_to_bring(location: str, run_dir: Path | None = None) -> dict[str, Any]:
    """Return the `config.json` of the newest complete checkpoint of a mirror.

    A run directory that has this mirror has the file itself, and the store is not asked.

    Args:
        location: path or URI of the mirror.
        run_dir: folder of the run, which may be missing.

    Raises:
        MirrorError: there is no such checkpoint, or the store does not answer.
    """
    target = None if run_dir is None else read_target(run_dir)
    if run_dir is not None and target is not None and target.location == location:
        content = read_json(run_dir / CONFIG_NAME)
        if content is not None and isinstance(content.get("train"), dict):
            return content
    place = Place(location)
    with _explained(place):
        for snapshot in _checkpoints(place):
            with contextlib.suppress(_DamagedError, ValueError):
                content = json.loads(_verified(snapshot, CONFIG_NAME))
                if isinstance(content.get("train"), dict):
                    return content
    raise MirrorError(f"--from {place.shown}: none of its checkpoints has a readable {CONFIG_NAME}")


def read_micro_batch_to_bring(location: str) -> FoundMicroBatch | None:
    """Return the micro-batch that was found for the run in a mirror; None: none was.

    Raises:
        MirrorError: there is no complete checkpoint, or the store does not answer.
    """
    place = Place(location)
    with _explained(place):
        for snapshot in _checkpoints(place):
            with contextlib.suppress(_DamagedError, ValueError, AttributeError):
                return as_micro_batch(json.loads(_verified(snapshot, MICRO_BATCH_NAME)))
    return None


def fetch_run(location: str, run_dir: Path, *, take_over: bool, say: Callable[[str], None]) -> None:
    """Bring the newest complete checkpoint of a mirror, with what belongs to it, and become the mirror's owner.

    A run directory that owns the mirror already is left as it is: its own checkpoints are the newest.

    Args:
        location: path or URI of the mirror.
        run_dir: folder of the run; it must be missing or empty, or own the mirror.
        take_over: also if the run is still trained where it was.
        say: gets a line for what was brought, and for each checkpoint that cannot be used.

    Raises:
        MirrorError: nothing is there, no checkpoint is whole, the run is still trained elsewhere, the folder is another
            run's, or the store does not answer.
        OSError: `run_dir` cannot be written.
    """
    place = Place(location)
    with _explained(place):
        try:
            present = _present_owner(place)
        except OSError as error:
            target = read_target(run_dir)
            if target is None or target.location != location or not checkpoints(run_dir):
                raise
            say(
                f"warning: the mirror {place.shown} does not answer ({one_line(error)}): {run_dir} goes on from its "
                "own checkpoints"
            )
            return
        if _is_there(run_dir, location, place, present):
            say(f"{run_dir} owns the mirror {place.shown}: it goes on from its own checkpoints")
            return
        owner = read_owner(place, present)
        if owner is not None and owner.is_alive(time.time()) and not take_over:
            raise MirrorError(
                f"--from {place.shown}: the run is still trained at {describe_owner(owner)}: stop it there, or give "
                "--take-over, after which it copies nothing there any more"
            )
        aside = run_dir.with_name(f".{run_dir.name}.fetching")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700, parents=True)
        try:
            step = _bring(place, aside, say)
            adopt_tracking(aside)
            run = owner.run if owner is not None else present
            write_target(aside, claim(place, location, run, run_dir), run_dir)
            aside.replace(run_dir)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    fsync(run_dir.parent)
    was = "" if owner is None else f" of {owner.place}"
    say(f"brought step {step} from the mirror {place.shown}{was} into {run_dir}, which owns the mirror now")
    if owner is not None and owner.state == "interrupted":
        say(f"warning: a job at {owner.place} may be waiting to go on with this run: cancel it there")


def describe_source(location: str) -> str:
    """Describe what `fetch_run` would bring, in one line.

    Raises:
        MirrorError: nothing is there, no checkpoint is complete, or the store does not answer.
    """
    place = Place(location)
    with _explained(place):
        newest = next(iter(_checkpoints(place)))
        owner = describe_owner(read_owner(place, _present_owner(place)))
        return f"step {newest.step} of {owner}, {newest.num_bytes:,} bytes, from {place.shown}"


def _present_owner(place: Place) -> str:
    names = owners(place)
    if not names:
        raise MirrorError(f"--from {place.shown}: nothing is there: a run is mirrored by pipeline.launch --mirror")
    return names[-1]


def _is_there(run_dir: Path, location: str, place: Place, present: str) -> bool:
    """Whether a run directory owns the mirror already.

    Raises:
        MirrorError: the folder holds something else.
    """
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return False
    target = read_target(run_dir)
    if target is not None and target.owner == present:
        if target.location != location:  # the same folder by another address
            write_target(run_dir, dataclasses.replace(target, location=location))
        return True
    owner = read_owner(place, present)
    is_same_run = target is not None and owner is not None and owner.run == target.run
    what = "an earlier part of this run" if is_same_run else "something else"
    raise MirrorError(f"--from {place.shown}: --run-dir {run_dir} holds {what}: take a folder that does not exist")


def _checkpoints(place: Place) -> list[Snapshot]:
    """Return the complete checkpoints: those of the present owner first, and the newest first among an owner's.

    Raises:
        MirrorError: there is none.
    """
    found: list[Snapshot] = []
    present = read_owner(place, _present_owner(place))
    for name in reversed(owners(place)):
        owner = read_owner(place, name)
        if owner is not None and present is not None and owner.run != present.run:
            continue  # the run was begun again
        readable: list[Snapshot] = []
        for each in snapshots(place, name)[0]:
            with contextlib.suppress(MirrorError):
                if not each.is_export and each.step >= 0:
                    readable.append(each)
        found += sorted(readable, key=lambda each: (each.step, each.path), reverse=True)
    if not found:
        raise MirrorError(
            f"--from {place.shown}: no checkpoint is complete there: launch without --from to begin again"
        )
    return found


def _bring(place: Place, folder: Path, say: Callable[[str], None]) -> int:
    """Copy the newest whole checkpoint, the best one, and the export into a folder; return the step.

    Raises:
        MirrorError: no checkpoint is whole.
    """
    tried: set[str] = set()
    while True:
        # A run that is still trained removes what it has listed.
        candidates = _checkpoints(place)
        newest = next((each for each in candidates if each.path not in tried), None)
        if newest is None:
            raise MirrorError(f"--from {place.shown}: none of its {len(tried)} checkpoints is whole")
        tried.add(newest.path)
        try:
            _copy(newest, folder, say)
            break
        except _DamagedError as error:
            say(f"warning: step {newest.step} of the mirror {place.shown} is not whole ({error}); taking an older one")
            shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
    owner = newest.path.partition("/")[0]
    same = [each for each in candidates if each.path.startswith(f"{owner}/") and each.step < newest.step]
    exports = [each for each in snapshots(place, owner)[0] if each.is_export]
    for each in filter(None, (_best([newest, *same], read_evaluations(folder)), *exports)):
        try:
            if each is not newest and each.step <= newest.step:
                _copy(each, folder, say, records=each.is_export and each.step == newest.step)
        except (_DamagedError, MirrorError) as error:
            say(f"warning: {each.path} of the mirror {place.shown} is left out: {error}")
            part = EXPORT if each.is_export else f"{CHECKPOINTS}/{step_name(each.step)}"
            shutil.rmtree(folder / part, ignore_errors=True)
    _bring_live_records(place, owner, folder)
    return newest.step


def _bring_live_records(place: Place, owner: str, folder: Path) -> None:
    """Replace the records that a later attempt, which has saved nothing, has gone on with."""
    for name in LIVE_NAMES:
        with contextlib.suppress(FileNotFoundError):
            content = place.read(f"{owner}/{name}")
            path = folder / name
            is_newer = content.startswith(path.read_bytes() if path.exists() else b"")
            if name == STATE_NAME:
                is_newer = content.endswith(b"}\n")
            if is_newer:
                path.write_bytes(content)


def _best(candidates: list[Snapshot], later: dict[int, dict[str, Any]]) -> Snapshot | None:
    """Return the checkpoint with the best primary metric, which is kept as locally; of equals the newest.

    Args:
        candidates: checkpoints, the newest first.
        later: evaluations that were made later than their step (`read_evaluations`).
    """
    best: tuple[Metric, Snapshot] | None = None
    for each in candidates:
        name = f"{CHECKPOINTS}/{step_name(each.step)}/{MANIFEST_NAME}"
        with contextlib.suppress(_DamagedError, ValueError, KeyError, TypeError, AttributeError):
            metric = stored_metric(later.get(each.step) or json.loads(_verified(each, name)))
            if metric is not None and metric.beats(best[0] if best else None):
                best = metric, each
    return best[1] if best else None


def _copy(snapshot: Snapshot, folder: Path, say: Callable[[str], None], *, records: bool = True) -> None:
    """Copy the files of a snapshot, and verify their sizes and digests.

    Args:
        snapshot: what is copied.
        folder: where to; a file that is there is replaced by a whole one.
        say: gets a line.
        records: also the small files of the run, such as the journal.

    Raises:
        _DamagedError: a file is missing or differs.
    """
    try:
        files = snapshot.content["files"]
    except MirrorError as error:
        raise _DamagedError(str(error)) from error
    say(f"copying step {snapshot.step}: {snapshot.num_bytes:,} bytes")
    # The records last: those of a snapshot that is not whole replace none.
    for name, expected in sorted(files.items(), key=lambda each: _is_record(each[0])):
        if _is_record(name) and not records:
            continue
        path = folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
            for chunk in _verified_chunks(snapshot, name, expected):
                try:
                    file.write(chunk)
                except OSError as error:
                    raise MirrorError(f"{path} cannot be written: {one_line(error)}") from error


def _is_record(name: str) -> bool:
    """Whether a file is one of the small ones of a run, such as the journal and the scores."""
    return "/" not in name or name.startswith(f"{EVALUATIONS}/")


def _verified(snapshot: Snapshot, name: str) -> bytes:
    """Return the content of a small file of a snapshot.

    Raises:
        _DamagedError: the file is missing or differs.
    """
    try:
        expected = snapshot.content["files"][name]
    except (MirrorError, KeyError) as error:
        raise _DamagedError(f"{name} is missing: {error}") from error
    return b"".join(_verified_chunks(snapshot, name, expected))


def _verified_chunks(snapshot: Snapshot, name: str, expected: dict[str, Any]) -> Iterator[bytes]:
    """Yield the content of a file.

    Raises:
        _DamagedError: the file is missing, or its size or digest, known at the end, differs.
    """
    digest, size = sha256(), 0
    try:
        for chunk in snapshot.place.chunks(f"{snapshot.path}/{name}"):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    except FileNotFoundError as error:
        raise _DamagedError(f"{name} is missing") from error
    if size != expected["bytes"]:
        raise _DamagedError(f"{name}: {size} bytes instead of {expected['bytes']}")
    if digest.hexdigest() != expected["sha256"]:
        raise _DamagedError(f"{name}: its sha256 is not the one that was copied")


@contextlib.contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Name the mirror in an error of its store.

    Raises:
        MirrorError: the store does not answer, or refuses.
    """
    try:
        yield
    except OSError as error:
        raise MirrorError(f"--from {place.shown}: {one_line(error)}") from error
