"""Under which name a run's model is registered, and which names and aliases MLflow takes; no MLflow at import."""

import re

from pipeline.common.errors import InputError

LONGEST = 256
"""Characters of a name that every store of MLflow keeps."""
_NAME = re.compile(r"[\w+-](?:[\w .+-]*[\w.+-])?")
_ALIAS = re.compile(r"[\w-]+")
_RESERVED_ALIAS = re.compile(r"v\d+|latest", re.IGNORECASE)


def check_name(name: str) -> None:
    """Refuse what MLflow refuses (`/`, `:`), and what would be read as something else in a `models:/` URI or a search.

    Raises:
        ValueError: what the name may consist of.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise InputError(
            f"--registered-name {name!r} cannot name a model in MLflow: take up to {LONGEST} letters, digits and "
            "_ - + . with spaces only within, such as transxnet_t-pets"
        )


def check_alias(alias: str) -> None:
    """Refuse an alias that MLflow would refuse once the version is made; `latest` it gives by itself.

    Raises:
        ValueError: what an alias may consist of.
    """
    if not _ALIAS.fullmatch(alias) or (_RESERVED_ALIAS.fullmatch(alias) and alias.lower() != "latest"):
        raise InputError(f"--alias {alias!r}: MLflow takes letters, digits, _ and -, and keeps v1, v2, … for itself")
