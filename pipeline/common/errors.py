"""Errors whose message is written for the user, and how any exception becomes one line."""

import re

from pipeline.common.secrets import mask_secrets


class PipelineError(Exception):
    """Base of every error of `pipeline` whose message tells the user what is wrong and what to do.

    A subclass derives from the built-in exception that describes it as well: `class ConfigError(PipelineError,
    ValueError)`. A command prints the message as one line, without a traceback.
    """


class InputError(PipelineError, ValueError):
    """A value given by the user that cannot be used."""


class TrainingError(PipelineError, RuntimeError):
    """A training that cannot go on."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Describe an exception in one line for the user: its reason, without secrets and without a library's frames."""
    text = " ".join(mask_secrets(str(error)).split()) or type(error).__name__
    reasons = re.findall(r"Caused by (\w+)\((?:[^\"']*)?[\"'](.*?)[\"']\)", text)
    if reasons:
        name, reason = reasons[-1]
        # urllib3 begins with the host once more.
        reason = re.sub(r"^\w+\(host=.*?\): ", "", reason)
        host = re.search(r"host='?([^',]+)'?, port=(\d+)", text)
        text = f"{host[1]}:{host[2]}: {reason} ({name})" if host else f"{reason} ({name})"
    return text if len(text) <= limit else text[: limit - 3] + "..."
