"""Checks names of registered models and aliases before anything is registered; does not import MLflow."""

import re

from pipeline.common.errors import InputError

LONGEST = 256
"""Number of characters that every store of MLflow keeps of a name."""
_NAME = re.compile(r"[\w+-](?:[\w .+-]*[\w.+-])?")
_ALIAS = re.compile(r"[\w-]+")
_RESERVED_ALIAS = re.compile(r"v\d+|latest", re.IGNORECASE)


def check_name(name: str) -> None:
    """Refuse a name that MLflow refuses (`/`, `:`) or misreads in a `models:/` URI or a search.

    Raises:
        ValueError: the name cannot be used; the message says what it may consist of.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise InputError(
            f"--registered-name {name!r} cannot name a model in MLflow: take up to {LONGEST} letters, digits and "
            "_ - + . with spaces only within, such as transxnet_t-pets"
        )


def check_alias(alias: str) -> None:
    """Refuse an alias that MLflow would refuse after the version is created; `latest`, which MLflow sets, is accepted.

    Raises:
        ValueError: the alias cannot be used; the message says what it may consist of.
    """
    if not _ALIAS.fullmatch(alias) or (_RESERVED_ALIAS.fullmatch(alias) and alias.lower() != "latest"):
        raise InputError(f"--alias {alias!r}: MLflow takes letters, digits, _ and -, and keeps v1, v2, … for itself")
