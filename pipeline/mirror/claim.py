"""Which run directory writes to a mirror: it is claimed by the launch, before a job is queued."""

import dataclasses
import os
import time
import uuid
from pathlib import Path

from pipeline.common.errors import one_line
from pipeline.mirror.layout import Owner, describe_owner, new_owner_name, owners, read_owner, write_owner
from pipeline.mirror.place import MirrorError, Place
from pipeline.run.mirror_files import MirrorProgress, MirrorTarget, read_target, write_progress, write_target


def check_mirror(run_dir: Path, location: str) -> str | None:
    """Refuse a location that cannot hold the mirror of a run, without writing anything; return a warning if any.

    Args:
        run_dir: folder of the run; it may be missing.
        location: path or URI; an absolute one, since the processes of the jobs run in other folders.

    Raises:
        MirrorError: the store does not answer, or holds the mirror of another run directory.
    """
    known, place = read_target(run_dir), Place(location)
    is_known = known is not None and known.location == location
    try:
        present = owners(place)
        if present and (known is None or not _is_own(place, present[-1], known, is_known=is_known)):
            owner = describe_owner(read_owner(place, present[-1]))
            raise MirrorError(
                f"--mirror {place.shown} holds the mirror of {owner}: go on from it with --from in place of --mirror, "
                "or name another folder"
            )
    except OSError as error:
        if is_known:
            return f"the mirror {place.shown} does not answer ({one_line(error)}); what it lacks is copied later"
        raise MirrorError(f"--mirror {place.shown} cannot be read: {one_line(error)}") from error
    return None


def _is_own(place: Place, present: str, known: MirrorTarget, *, is_known: bool) -> bool:
    """Whether a mirror's present owner is the run directory that knows `known`, and not a copy of it."""
    owner = read_owner(place, present)
    if owner is not None and present == known.owner:
        return not owner.is_copy_of(known.tokens)
    return present == known.owner or (is_known and present < known.owner)


def use_mirror(run_dir: Path, location: str) -> None:
    """Have a run mirrored at a location, which `check_mirror` has taken, from its next attempt on.

    Raises:
        MirrorError: the store does not take a file.
    """
    known, place = read_target(run_dir), Place(location)
    if known is not None and known.location == location:
        return
    try:
        if known is not None and owners(place)[-1:] == [known.owner]:  # the same folder by another address
            return write_target(run_dir, dataclasses.replace(known, location=location))
        write_progress(run_dir, MirrorProgress())
        write_target(run_dir, claim(place, location, uuid.uuid4().hex if known is None else known.run, run_dir))
    except OSError as error:
        raise MirrorError(f"--mirror {place.shown} cannot be written: {one_line(error)}") from error


def claim(place: Place, location: str, run: str, run_dir: Path) -> MirrorTarget:
    """Become the owner of a mirror, after whoever owns it now; return what the run directory must keep.

    Raises:
        MirrorError: another one has claimed it at the same moment.
        OSError: the store does not take it.
    """
    name = new_owner_name(owners(place))
    owner = Owner(run=run, run_dir=str(run_dir), host=os.uname().nodename, state="claimed", time=time.time())
    write_owner(place, name, owner)
    newest = owners(place)[-1]
    if newest != name:
        raise MirrorError(f"{place.shown} was taken by {describe_owner(read_owner(place, newest))} at this moment")
    return MirrorTarget(location=location, run=run, owner=name)
