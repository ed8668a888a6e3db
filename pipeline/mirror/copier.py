"""Brings a mirror up to date with a run directory: what is missing there is copied, what is gone here is removed."""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.common.atomic import file_sha256, read_json
from pipeline.common.errors import PipelineError, one_line
from pipeline.common.secrets import mask_secrets
from pipeline.mirror.layout import (
    HEARTBEAT_S,
    LIVE_NAMES,
    PRIVATE,
    SCHEMA,
    SNAPSHOT_NAME,
    NewerVersionError,
    Owner,
    Snapshot,
    describe_owner,
    new_snapshot_name,
    owners,
    read_owner,
    snapshots,
    write_owner,
)
from pipeline.mirror.place import MirrorError, Place
from pipeline.run.files import CONFIG_NAME, EVALUATIONS, MANIFEST_NAME, REGISTERED_NAME, checkpoints
from pipeline.run.mirror_files import MirrorTarget, add_token, read_target
from pipeline.run.status import run_state

EXPORT_FOLDER, CARD_NAME = "export", "model.json"


class TakenOverError(PipelineError, ValueError):
    """Another run directory has become the mirror's owner; the message names it."""


class DamagedHereError(PipelineError, ValueError):
    """A checkpoint whose files differ from its manifest here, so that it is not copied."""


class _UnreadableError(PipelineError, ValueError):
    """A file here whose content is not what it should be; the message names it."""


class Copier:
    """Copies one run directory to its mirror. Every method raises an `OSError` while the store does not take it."""

    def __init__(
        self, run_dir: Path, target: MirrorTarget, on_missing: Callable[[int | None], None] | None = None
    ) -> None:
        """Keep what is copied where; nothing is read or written yet.

        Args:
            run_dir: folder of the run.
            target: its mirror.
            on_missing: called before each copy with the newest step that is complete in the mirror.
        """
        self._run_dir, self._target, self._on_missing = run_dir, target, on_missing
        self.place = Place(target.location)
        self._held: dict[str, Snapshot] | None = None
        self._damaged: set[str] = set()
        self._token = ""
        self._is_alone = False
        """Whether nothing of former owners is left."""
        self._state, self._told = "", ("", float("-inf"))
        """State of the run, and the state that was last told, with the time in seconds of the monotonic clock."""

    @property
    def newest_step(self) -> int | None:
        """Newest step that is complete in the mirror; None: none, or not known."""
        return max((each.step for each in (self._held or {}).values() if not each.is_export), default=None)

    @property
    def num_damaged(self) -> int:
        """Number of checkpoints that are left out, since they are damaged here."""
        return len(self._damaged)

    def forget(self) -> None:
        """Look at the mirror anew at the next copy, since something has failed."""
        self._held = None

    def copy_next(self) -> bool:
        """Copy what is missing most, one snapshot at a time, the newest first; return whether nothing is missing.

        Raises:
            TakenOverError: the mirror has another owner.
            DamagedHereError: a checkpoint is damaged here; the next call leaves it out.
            OSError: the store does not take it.
        """
        self._state = run_state(self._run_dir)
        self._show_life()
        if self._held is None:
            self._held = self._look()
        wanted = self._wanted()
        for key, step in wanted.items():
            if key not in self._held and key not in self._damaged:
                if self._on_missing is not None:
                    self._on_missing(self.newest_step)
                self._require_ownership()
                self._copy_unless_removed(key, step)
                return False
        if any(key in self._held for key in wanted):
            self._remove_gone(wanted)
        return True

    def _look(self) -> dict[str, Snapshot]:
        """Return the complete snapshots of this owner by their keys, and remove what tries that were cut off left."""
        self._require_ownership()
        held: dict[str, Snapshot] = {}
        complete, useless = snapshots(self.place, self._target.owner)
        for each in complete:
            try:
                is_of_use = each.key not in held
            except NewerVersionError:
                continue
            except MirrorError:
                is_of_use = False
            if is_of_use:
                held[each.key] = each
            else:
                useless.append(PurePosixPath(each.path).name)
        for name in useless:
            self.place.remove(f"{self._target.owner}/{name}")
        return held

    def _wanted(self) -> dict[str, int | None]:
        """Return what the mirror should hold, by its key, the newest first: the steps, and None for the export."""
        keys: dict[str, int | None] = {}
        export = self._export_key()
        for step, folder in sorted(checkpoints(self._run_dir).items(), reverse=True):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                keys[file_sha256(folder / MANIFEST_NAME)] = step
            if export is not None:
                keys.setdefault(export, None)
        if export is not None:
            keys.setdefault(export, None)
        return keys

    def _export_key(self) -> str | None:
        """Return the digest of what describes the exported weights; None before the export."""
        folder = self._run_dir / EXPORT_FOLDER
        if not (folder / CARD_NAME).exists():
            return None
        digest = sha256()
        for path in (folder / CARD_NAME, folder / "best" / CARD_NAME, self._run_dir / REGISTERED_NAME):
            digest.update(path.read_bytes() if path.exists() else b"-")
        return digest.hexdigest()

    def _copy_unless_removed(self, key: str, step: int | None) -> None:
        """Copy a snapshot; drop the copy of a checkpoint that is removed here meanwhile."""
        try:
            self._copy(key, step)
        except (FileNotFoundError, KeyError, _UnreadableError) as error:
            if step is not None and step not in checkpoints(self._run_dir):
                self._held = self._look()
            elif isinstance(error, _UnreadableError):
                self._damaged.add(key)
                raise DamagedHereError(str(error)) from error
            else:
                raise

    def _copy(self, key: str, step: int | None) -> None:
        """Copy a snapshot; its `snapshot.json` comes last."""
        assert self._held is not None
        path = f"{self._target.owner}/{new_snapshot_name(step)}"
        files: dict[str, Any] = {}
        # The records first: they reach at least as far as the checkpoint.
        for name in _records(self._run_dir):
            content = _masked(self._run_dir / name)
            self.place.put(f"{path}/{name}", content)
            files[name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        for name, expected in self._large_files(step).items():
            digest, size = self.place.upload(self._run_dir / name, f"{path}/{name}", self._show_life)
            if expected is not None and digest != expected:
                self._damaged.add(key)
                raise DamagedHereError(f"{self._run_dir / name}: its sha256 is not the manifest's")
            files[name] = {"bytes": size, "sha256": digest}
        if step is None:
            step = int((read_json(self._run_dir / EXPORT_FOLDER / CARD_NAME) or {}).get("step", 0))
        content = {"schema": SCHEMA, "key": key, "step": step, "files": files}
        self.place.put(f"{path}/{SNAPSHOT_NAME}", (json.dumps(content, indent=1) + "\n").encode())
        self._held[key] = Snapshot(self.place, path)

    def _large_files(self, step: int | None) -> dict[str, str | None]:
        """Return the files of a checkpoint, or (None) of the export, with the sha256 that they should have if known."""
        if step is None:
            folder = self._run_dir / EXPORT_FOLDER
            found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
            return {str(path.relative_to(self._run_dir)): None for path in found}
        folder = checkpoints(self._run_dir)[step]
        relative = folder.relative_to(self._run_dir)
        try:
            manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            files = {f"{relative}/{name}": str(of["sha256"]) for name, of in manifest["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _UnreadableError(f"{folder / MANIFEST_NAME} is damaged: {one_line(error)}") from error
        return {**files, f"{relative}/{MANIFEST_NAME}": None}

    def _remove_gone(self, wanted: dict[str, int | None]) -> None:
        """Remove the checkpoints that are gone here and older than one that is in both places, and former owners."""
        assert self._held is not None
        common = [step for key, step in wanted.items() if key in self._held and step is not None]
        for key, each in list(self._held.items()):
            if key not in wanted and (each.is_export or (common and each.step <= max(common))):
                self._require_ownership()
                self.place.remove(each.path)
                del self._held[key]
        if common and not self._is_alone:
            for former in owners(self.place):
                if former < self._target.owner and self._is_of_this_run(former):
                    self.place.remove(former)
            self._is_alone = True

    def _is_of_this_run(self, former: str) -> bool:
        """Whether a former owner had this run: one that was begun again leaves the checkpoints of before."""
        owner = read_owner(self.place, former)
        return owner is None or owner.run == self._target.run

    def _require_ownership(self) -> None:
        """Refuse to write to a mirror that another run directory has taken over.

        Raises:
            TakenOverError: the message names the present owner.
        """
        present = owners(self.place)
        if present and present[-1] > self._target.owner:
            raise TakenOverError(describe_owner(read_owner(self.place, present[-1])))
        owner, target = read_owner(self.place, self._target.owner), read_target(self._run_dir)
        if owner is not None and target is not None and owner.is_copy_of(target.tokens):
            raise TakenOverError(f"a copy of this run directory, {describe_owner(owner)}")

    def _show_life(self) -> None:
        """Tell the mirror how the run stands: once a minute, and when that changes."""
        now = time.monotonic()
        if self._state == self._told[0] and now - self._told[1] < HEARTBEAT_S:
            return
        self._require_ownership()
        if not self._token:
            token = uuid.uuid4().hex[:8]
            add_token(self._run_dir, token)
            self._token = token
        owner = Owner(
            run=self._target.run,
            run_dir=str(self._run_dir),
            host=os.uname().nodename,
            state=self._state,
            time=time.time(),
            token=self._token,
        )
        write_owner(self.place, self._target.owner, owner)
        for name in LIVE_NAMES:
            with contextlib.suppress(FileNotFoundError):
                self.place.put(f"{self._target.owner}/{name}", (self._run_dir / name).read_bytes())
        self._told = self._state, now


def _records(run_dir: Path) -> list[str]:
    """Names of the small files of a run that a resume needs: configuration, journal, scores, state of MLflow."""
    names = [path.name for path in run_dir.iterdir() if path.suffix in (".json", ".jsonl") and path.is_file()]
    names += [f"{EVALUATIONS}/{path.name}" for path in (run_dir / EVALUATIONS).glob("step_*.json")]
    return sorted(name for name in names if not name.startswith(".") and name not in PRIVATE)


def _masked(path: Path) -> bytes:
    """Return the content of a record; in the configuration, secrets in addresses and in the command are masked."""
    content = path.read_bytes()
    if path.name != CONFIG_NAME:
        return content

    def mask(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mask(each) for key, each in value.items()}
        if isinstance(value, list):
            return [mask(each) for each in value]
        return mask_secrets(value) if isinstance(value, str) else value

    try:
        return (json.dumps(mask(json.loads(content)), indent=1) + "\n").encode()
    except ValueError as error:
        raise _UnreadableError(f"{path} is damaged: {one_line(error)}") from error
