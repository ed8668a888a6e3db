"""S3 with explicit limits of time and attempts, and with a word to the user while a store keeps a command waiting.

pyarrow opens a URI with time-outs of 1 and 3 seconds, which a listing of a large folder exceeds, and tries 31 times
without a word. Its classes take other values, but a URI cannot give them.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyarrow import fs

from sharding.console import print_status

CONNECT_TIMEOUT_S = 5
"""Seconds after which an attempt to connect fails."""
REQUEST_TIMEOUT_S = 30
"""Seconds without a single byte after which a request fails."""
FIRST_WORD_S = 10.0
"""Seconds of waiting after which the user reads about it; each further line comes after twice the time."""
_ATTEMPTS = 7
"""Attempts of a request; the pauses between them double, and are 25 seconds together on average."""
_ADVICE = {
    "NETWORK_CONNECTION": "Check endpoint_override and the network",
    "SLOW_DOWN": "The store limits the rate of requests: use fewer workers or tasks, or wait",
    "SERVICE_UNAVAILABLE": "The store is overloaded or down: wait",
    "INTERNAL_FAILURE": "The store is at fault: wait",
    "ACCESS_DENIED": "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and the rights of that account",
    "INVALID_ACCESS_KEY_ID": "Check AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN",
    "SIGNATURE_DOES_NOT_MATCH": "Check AWS_SECRET_ACCESS_KEY and the clock of this machine",
    "EXPIRED_TOKEN": "Log in again for a new AWS_SESSION_TOKEN",
}
_TRIED_AGAIN = ("NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE")


def attempts() -> int:
    """Attempts of a request to S3: `AWS_MAX_ATTEMPTS` as in other software, by default 7."""
    given = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return int(given) if given.isdecimal() and int(given) else _ATTEMPTS


def bounded(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same file system, with limits of time and attempts where it is S3."""
    return _reopen(filesystem.__reduce__()[1][0]) if isinstance(filesystem, fs.S3FileSystem) else filesystem


@contextlib.contextmanager
def word_while_waiting(what: str) -> Iterator[None]:
    """Print a line to stderr while the content of this context takes long.

    Args:
        what: what the command waits for.
    """
    done = threading.Event()

    def speak() -> None:
        pause = waited = FIRST_WORD_S
        while not done.wait(pause):
            print_status(
                f"waited {waited:.0f} s for {what} so far; a request is tried {attempts()} times, "
                f"{REQUEST_TIMEOUT_S} s each"
            )
            pause, waited = waited, 2 * waited

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say a word while a request takes long; after the last attempt, say what to do.

    Args:
        what: what the request is about, such as `s3://bucket/folder`.

    Raises:
        OSError: the store refused or did not answer.
    """
    try:
        with word_while_waiting(what):
            yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = _reason(str(error))
        if reason not in _ADVICE:
            raise
        tried = f" in {attempts()} attempts" if reason in _TRIED_AGAIN else ""
        raise OSError(f"the store did not serve {what}{tried} ({error}). {_ADVICE[reason]}") from error


def _reason(message: str) -> str:
    """The reason of an error of S3 in the words of the AWS SDK; answers without a body have only a status."""
    found = re.search(r"AWS Error (?P<reason>[A-Z_]+)(?: \(HTTP status (?P<status>[0-9]+)\))?", message)
    if found is None:
        return ""
    if found["reason"] != "UNKNOWN" or not found["status"]:
        return found["reason"]
    if found["status"].startswith("5"):
        return "SERVICE_UNAVAILABLE"
    return "ACCESS_DENIED" if found["status"] in ("400", "401", "403") else ""


class _BoundedS3(fs.S3FileSystem):
    """S3 whose time-outs and attempts also hold in a worker: pyarrow's own class loses the attempts when pickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Mapping[str, Any]]]:
        return _reopen, (super().__reduce__()[1][0],)

    def get_file_info(self, paths_or_selector: Any) -> Any:
        with explained(f"s3://{getattr(paths_or_selector, 'base_dir', paths_or_selector)}"):
            return super().get_file_info(paths_or_selector)

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        with explained(f"s3://{path}"):
            super().create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        with explained(f"s3://{path}"):
            super().delete_dir(path)

    def delete_file(self, path: str) -> None:
        with explained(f"s3://{path}"):
            super().delete_file(path)

    def move(self, src: str, dest: str) -> None:
        with explained(f"s3://{dest}"):
            super().move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        with explained(f"s3://{dest}"):
            super().copy_file(src, dest)

    def open_input_file(self, path: str) -> Any:
        with explained(f"s3://{path}"):
            return super().open_input_file(path)

    def open_input_stream(self, path: str, *arguments: Any, **options: Any) -> Any:
        with explained(f"s3://{path}"):
            return super().open_input_stream(path, *arguments, **options)

    def open_output_stream(self, path: str, *arguments: Any, **options: Any) -> Any:
        with explained(f"s3://{path}"):
            return super().open_output_stream(path, *arguments, **options)


def _reopen(options: Mapping[str, Any]) -> fs.S3FileSystem:
    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
    return _BoundedS3(**{**options, **limits}, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts()))
