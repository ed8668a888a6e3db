"""Verifies a model before it becomes a version: loaded in a clean process, it must reach its recorded score."""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.processes import PROJECT_ROOT, environment_without_rank, preemption_blocked
from pipeline.common.secrets import mask_secrets
from pipeline.tasks import Task, find_task
from pipeline.tracking.client import TrackingError, bound_requests
from pipeline.weights.card import ModelCard

SAMPLE = 64
"""Number of images that are classified; enough to notice a wrong resize, normalisation or class order."""
CHECK_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The accuracy that a model reached in a clean process."""

    samples: int
    """Number of images that were answered."""
    share: float
    """Mean share of the truth that the answers have right, in [0, 1]: of a classifier its top-1."""


def sample_images(
    location: str, split: str, name: str | None = None, *, count: int = SAMPLE, task: Task | None = None
) -> tuple[str, list[tuple[bytes, Any]]]:
    """Read images spread evenly over a split.

    Args:
        location: folder or URI of the shards.
        split: name of the split.
        name: name of the data set, where the folder holds several.
        count: largest number of images.
        task: decides what the truth is; None: what the split was packed for.

    Returns:
        The digest of the split's manifest, and (encoded image, truth) of each image: the id of its class, or what
        else the task compares answers with.

    Raises:
        sharding.ShardingError: the shards are missing or incomplete.
        OSError: a shard cannot be read.
    """
    from sharding import load_index, load_manifest
    from sharding.storage import Folder

    manifest = load_manifest(location, split, name)
    task = task or find_task(manifest.task)
    index = load_index(location, manifest)
    count = min(count, len(index))
    chosen = index.take([(2 * k + 1) * len(index) // (2 * count) for k in range(count)]).to_pylist()
    folder = Folder.open(location)
    images = []
    for row in chosen:
        with folder.open_input(manifest.shards[row["shard"]].name) as shard:

            def read(offset: int, size: int, shard: Any = shard) -> bytes:
                shard.seek(offset)
                return shard.read(size)

            images.append((read(row["offset"], row["size"]), task.truth(row, manifest, read)))
    return manifest.digest, images


def verify(model_uri: str, tracking_uri: str, card: ModelCard, images: list[tuple[bytes, Any]]) -> Verification:
    """Load the model in a clean process and compare its answers on the images with the card's score.

    The process cannot use the `transxnet` of this checkout: the model must bring its own. The share of right
    answers may differ from the score by `tolerance`.

    Args:
        model_uri: `models:/` URI of the logged model.
        tracking_uri: MLflow server that holds the model.
        card: the model's card.
        images: (encoded image, truth) of each image, as `sample_images` gives them.

    Raises:
        TrackingError: the model does not load, uses this checkout's code, or is not as good as recorded.
    """
    served = card.of_task.served
    expected = card.scores.get(served.score)
    with tempfile.TemporaryDirectory(prefix="register-") as name:
        folder = Path(name)
        truths = {}
        for k, (content, truth) in enumerate(images):
            (folder / f"{k:06d}.img").write_bytes(content)
            truths[f"{k:06d}.img"] = truth
        answers = _classify(model_uri, tracking_uri, folder, served.compared)
    right = sum(served.agreement(answers[file], truth) for file, truth in truths.items())
    result = Verification(samples=len(images), share=right / len(images))
    if expected is not None and abs(result.share - expected) > tolerance(card, len(images)):
        raise TrackingError(
            f"{card.name}: loaded in a clean process the model gets {right:g} of {len(images)} validation images "
            f"right, but its recorded {card.of_task.scores.label(served.score)} is {expected:.4f}: it was not "
            "registered"
        )
    return result


def tolerance(card: ModelCard, samples: int) -> float:
    """Return how far the share of right answers of a sample may be from the recorded score.

    Four standard deviations of a sample drawn without replacement, plus one image or 0.01, whichever is larger. A
    sample that is the whole split has no deviation.
    """
    total = max(card.validation_samples, samples)
    share = card.scores.get(card.of_task.served.score, 0.0)
    # Near 0 and 1 the estimate of the spread vanishes: add one correct and one wrong guess, as Wilson does.
    smoothed = (share * total + 1) / (total + 2)
    finite_population = (total - samples) / max(total - 1, 1)
    return 4 * math.sqrt(smoothed * (1 - smoothed) / samples * finite_population) + max(1 / samples, 0.01)


def _classify(model_uri: str, tracking_uri: str, folder: Path, column: str) -> dict[str, str]:
    """Run `clean_process.py` without this checkout on its path; return a column of its answers by file."""
    script = Path(__file__).with_name("clean_process.py")
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {
        **environment_without_rank(),
        **bound_requests(timeout_s=60, retries=2),
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PYTHONPATH": os.pathsep.join(entry for entry in paths if Path(entry).resolve() != PROJECT_ROOT),
    }
    # -P: Python does not search the script's own folder for modules.
    command = [sys.executable, "-P", str(script), model_uri, str(folder), column]
    with preemption_blocked():  # a preemption sends its signal to every process of the job
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    try:
        _, errors = process.communicate(timeout=CHECK_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise TrackingError(f"{model_uri} did not answer within {CHECK_TIMEOUT_S} s in a clean process") from error
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        lines = errors.strip().splitlines()
        last = mask_secrets(lines[-1] if lines else f"exit code {process.returncode}")
        raise TrackingError(f"{model_uri} does not load and answer in a clean process: {last}")
    result = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    if Path(result["code"]).resolve().is_relative_to(PROJECT_ROOT):
        raise TrackingError(f"{model_uri} did not bring its own transxnet: it used {result['code']} of this checkout")
    return result["answers"]
