"""Addresses of MLflow: which one is used, made absolute, and whether this MLflow can open it. No import of MLflow."""

import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.common.errors import InputError
from pipeline.common.secrets import mask_secrets

DEFAULT_STORE = "runs/mlflow.db"
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
FORMS = "write http://HOST:PORT, sqlite:////PATH/mlflow.db or postgresql://HOST/NAME"
_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<path>[^?]*)")
_DATABASES = ("postgresql", "mysql", "mssql")


def resolve_tracking_uri(cwd: str | os.PathLike[str]) -> str:
    """Return `MLFLOW_TRACKING_URI` if it is set, else the address of the sqlite file `runs/mlflow.db` below `cwd`.

    A relative path of a sqlite file is taken below `cwd`.
    """
    return absolute_address(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_STORE}", cwd)


def registry_uri() -> str | None:
    """Return `MLFLOW_REGISTRY_URI`; None if it is not set, so that the tracking server is the registry too."""
    given = os.environ.get("MLFLOW_REGISTRY_URI")
    return absolute_address(given, Path.cwd()) if given else None


def absolute_address(uri: str, cwd: str | os.PathLike[str]) -> str:
    """Return the address with the path of a sqlite file made absolute; any other address as it is."""
    match = _SQLITE.match(uri)
    if match is None or match["path"] in ("", ":memory:"):
        return uri
    path = Path(cwd).resolve() / os.path.expanduser(match["path"])
    return f"{match['scheme']}{path}{uri[match.end() :]}"


def use_absolute_addresses() -> None:
    """Make the sqlite files that this process's environment names absolute: other processes run in other folders."""
    for name in VARIABLES:
        if os.environ.get(name):
            os.environ[name] = absolute_address(os.environ[name], Path.cwd())


def local_database(uri: str) -> Path | None:
    """Return the file of a sqlite store; None for a server or another database."""
    match = _SQLITE.match(uri)
    return Path(unquote(match["path"])).resolve() if match else None


def check_address(uri: str, variable: str = "MLFLOW_TRACKING_URI") -> None:
    """Refuse an address that this MLflow cannot open; no server is asked.

    Args:
        uri: the address.
        variable: environment variable that holds it, for the message.

    Raises:
        InputError: the message says why, and shows the forms of an address.
    """
    problem = _problem(uri)
    if problem:
        raise InputError(f"{variable} {mask_secrets(uri)} {problem}: {FORMS}")


def _problem(uri: str) -> str:
    """Return what is wrong with an address, as the end of a sentence; empty if it can be opened."""
    scheme, colon, _ = uri.partition(":")
    scheme, _, driver = scheme.partition("+")
    if uri == "databricks" or uri.startswith("databricks://"):
        return ""
    if (colon and scheme == "file") or uri.startswith(("/", "./", "../", "~")):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
            return ""
        return "is a folder, and MLflow has put its file store into maintenance mode and no longer opens one"
    if scheme in ("http", "https"):
        try:
            return "" if urlsplit(uri).hostname else "names no host"
        except ValueError as error:
            return f"is not an address ({error})"
    if colon and scheme == "sqlite":
        match = _SQLITE.match(uri)
        if match is None:
            return "is no address of a SQLite file, which has three slashes before a relative path and four before /"
        return "is not a file" if match["path"] in ("", ":memory:") else ""
    if uri.startswith(tuple(f"{scheme}{'+' if driver else ''}{driver}://" for scheme in _DATABASES)):
        return _missing_driver(uri)
    return "is not an MLflow address"


def _missing_driver(uri: str) -> str:
    """Return which package the address of a database needs and this Python lacks."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        return f"needs the package {error.name}, which is not installed here"
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        return f"is not the address of a database ({' '.join(str(error).split())[:120]})"
    return ""


def check_interpreter() -> None:
    """Refuse an interpreter without docstrings: MLflow then loses classes that tracking needs.

    Raises:
        InputError: it runs with -OO or `PYTHONOPTIMIZE=2`.
    """
    if sys.flags.optimize > 1:
        raise InputError(
            "PYTHONOPTIMIZE=2 (-OO) removes the docstrings that MLflow is built from: unset it, or set it to 1"
        )
