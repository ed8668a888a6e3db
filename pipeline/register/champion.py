"""Which version `champion` points to, also when several trainings end at the same moment.

A registry has no compare-and-set. So every registrar looks again after it has written, until what it sees is what the
rule asks for: the last of them to write has seen all the others. A version is `open` from its creation until its own
registrar has finished this; versions that were `settled` before are past rivals, and are not brought back.
"""

import time
from typing import TYPE_CHECKING

from pipeline.common.errors import one_line
from pipeline.tracking.client import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


CHAMPION = "champion"
LATEST = "latest"
"""MLflow gives it to the highest number by itself."""
STATE_TAG = "champion_rule"
OPEN, SETTLED = "open", "settled"
MAX_ROUNDS = 20
PAUSE_S = 0.1
COLLISIONS = ("BAD_REQUEST", "TEMPORARILY_UNAVAILABLE")
"""What MLflow answers where two set the first champion at once: its database takes one of the two rows."""


def all_versions(client: "MlflowClient", name: str) -> "dict[str, ModelVersion]":
    """Every version of a registered model, by number."""
    versions: dict[str, ModelVersion] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        versions |= {str(version.version): version for version in page}
        token = page.token
        if not token:
            return versions


def champion_of(client: "MlflowClient", name: str) -> str | None:
    """Number of the present champion's version; None without one."""
    aliases = client.get_registered_model(name).aliases
    version = aliases.get(CHAMPION)
    return None if version is None else str(version)


def settled_versions(client: "MlflowClient", name: str) -> set[str]:
    """Numbers of the versions whose registration is over; ask before creating a new one."""
    return {number for number, version in all_versions(client, name).items() if version.tags.get(STATE_TAG) != OPEN}


def promote(client: "MlflowClient", name: str, mine: str, settled: set[str]) -> str | None:
    """Apply the rule for a new version and return the champion's number afterwards.

    The champion is replaced by a version with a greater top-1 on the same validation data; equal ones leave it.

    Args:
        client: of the registry.
        name: registered model.
        mine: number of the new version, tagged `open`.
        settled: what `settled_versions` gave before it was created.

    Raises:
        TrackingError: the registry never takes or shows what was written.
    """
    from mlflow.exceptions import MlflowException

    trouble = "others set it again and again"
    for _ in range(MAX_ROUNDS):
        versions = all_versions(client, name)
        champion = champion_of(client, name)
        rivals = {number for number in versions if number not in settled} | {mine}
        best = _best(versions, champion, rivals)
        if best == champion:
            client.set_model_version_tag(name, mine, STATE_TAG, SETTLED)
            return champion
        assert best is not None
        try:
            client.set_registered_model_alias(name, CHAMPION, best)
        except MlflowException as error:
            if error.error_code not in COLLISIONS:
                raise
            trouble = one_line(error)
            time.sleep(PAUSE_S)
    raise TrackingError(f"the alias {CHAMPION!r} of {name} cannot be set ({trouble}): set it by --alias {CHAMPION}")


def _best(versions: "dict[str, ModelVersion]", champion: str | None, rivals: set[str]) -> str | None:
    """The champion, or the rival that beats it most; among equals the oldest."""
    best = champion if champion in versions else None
    for number in sorted(rivals, key=int):
        if (
            number in versions
            and "top1" in versions[number].tags
            and _beats(versions[number], versions.get(best or ""))
        ):
            best = number
    return best


def _beats(challenger: "ModelVersion", holder: "ModelVersion | None") -> bool:
    if holder is None:
        return True
    digest = challenger.tags.get("validation_digest")
    same = digest is not None and digest == holder.tags.get("validation_digest")
    return same and float(challenger.tags["top1"]) > float(holder.tags.get("top1", "nan"))
