"""What ends a training, said for the user."""

import re
from typing import TYPE_CHECKING

from pipeline.common.secrets import mask_secrets

if TYPE_CHECKING:
    pass


class TrainingError(RuntimeError):
    """A training that cannot go on; the message is for the user."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one line for the user: its reason, without secrets and without the library's inner frames."""
    text = " ".join(mask_secrets(str(error)).split()) or type(error).__name__
    reasons = re.findall(r"Caused by (\w+)\((?:[^\"']*)?[\"'](.*?)[\"']\)", text)
    if reasons:
        name, reason = reasons[-1]
        # urllib3 begins with the host once more.
        reason = re.sub(r"^\w+\(host=.*?\): ", "", reason)
        host = re.search(r"host='?([^',]+)'?, port=(\d+)", text)
        text = f"{host[1]}:{host[2]}: {reason} ({name})" if host else f"{reason} ({name})"
    return text if len(text) <= limit else text[: limit - 3] + "..."
