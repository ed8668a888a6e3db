"""Decides which version the alias `champion` points to, also when several trainings end at the same moment.

The rule: `champion` moves to a new version whose primary metric is better on the same validation data.

The registry has no compare-and-set. So each process that registers a version sets the alias, reads it again, and
repeats until it reads what the rule asks for: the last process to write has then read the versions of all others. A
version has the tag `open` from its creation until its own process has done this. Versions that had the tag `settled`
before were decided on earlier and do not compete again.
"""

import time
from typing import TYPE_CHECKING

from pipeline.common.errors import one_line
from pipeline.tasks import stored_metric
from pipeline.tracking.client import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


CHAMPION = "champion"
LATEST = "latest"
"""MLflow gives this alias to the highest number by itself."""
STATE_TAG = "champion_rule"
OPEN, SETTLED = "open", "settled"
MAX_ROUNDS = 20
PAUSE_S = 0.1
COLLISIONS = ("BAD_REQUEST", "TEMPORARILY_UNAVAILABLE")
"""Error codes of MLflow when two processes set the first champion at once: its database takes one of the two rows."""


def all_versions(client: "MlflowClient", name: str) -> "dict[str, ModelVersion]":
    """Return every version of a registered model, by number."""
    versions: dict[str, ModelVersion] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        versions |= {str(version.version): version for version in page}
        token = page.token
        if not token:
            return versions


def champion_of(client: "MlflowClient", name: str) -> str | None:
    """Return the number of the version that is champion now; None without one."""
    aliases = client.get_registered_model(name).aliases
    version = aliases.get(CHAMPION)
    return None if version is None else str(version)


def settled_versions(client: "MlflowClient", name: str) -> set[str]:
    """Return the numbers of the versions whose registration is complete; call it before creating a new version."""
    return {number for number, version in all_versions(client, name).items() if version.tags.get(STATE_TAG) != OPEN}


def promote(client: "MlflowClient", name: str, new: str, settled: set[str]) -> str | None:
    """Apply the rule to a new version; return the champion's number afterwards.

    A version with an equal metric does not replace the champion.

    Args:
        client: client of the registry.
        name: registered model.
        new: number of the new version, tagged `open`.
        settled: result of `settled_versions` before the new version was created.

    Raises:
        TrackingError: after `MAX_ROUNDS` attempts the registry still does not hold what the rule asks for.
    """
    from mlflow.exceptions import MlflowException

    reason = "other registrations keep setting it"
    for _ in range(MAX_ROUNDS):
        versions = all_versions(client, name)
        champion = champion_of(client, name)
        rivals = {number for number in versions if number not in settled} | {new}
        best = _best(versions, champion, rivals)
        if best == champion:
            client.set_model_version_tag(name, new, STATE_TAG, SETTLED)
            return champion
        assert best is not None
        try:
            client.set_registered_model_alias(name, CHAMPION, best)
        except MlflowException as error:
            if error.error_code not in COLLISIONS:
                raise
            reason = one_line(error)
            time.sleep(PAUSE_S)
    raise TrackingError(f"the alias {CHAMPION!r} of {name} cannot be set ({reason}): set it with --alias {CHAMPION}")


def _best(versions: "dict[str, ModelVersion]", champion: str | None, rivals: set[str]) -> str | None:
    """Return the number of the best version: the champion, or the rival that beats it most; among equals the oldest."""
    best = champion if champion in versions else None
    for number in sorted(rivals, key=int):
        if (
            number in versions
            and stored_metric(versions[number].tags) is not None
            and _beats(versions[number], versions.get(best or ""))
        ):
            best = number
    return best


def _beats(challenger: "ModelVersion", holder: "ModelVersion | None") -> bool:
    """Return whether the challenger has a better metric on the same validation data, or there is no holder."""
    if holder is None:
        return True
    digest = challenger.tags.get("validation_digest")
    is_same_data = digest is not None and digest == holder.tags.get("validation_digest")
    ours, theirs = stored_metric(challenger.tags), stored_metric(holder.tags)
    return is_same_data and ours is not None and theirs is not None and ours.beats(theirs)
