"""Verifies a model before it becomes a version: loaded in a clean process, it must reach its recorded top-1."""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.processes import PROJECT_ROOT, environment_without_rank, preemption_blocked
from pipeline.common.secrets import mask_secrets
from pipeline.tracking.client import TrackingError, bound_requests
from pipeline.weights.card import ModelCard

SAMPLE = 64
"""Number of images that are classified; enough to notice a wrong resize, normalisation or class order."""
CHECK_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The accuracy that a model reached in a clean process."""

    samples: int
    """Number of images that were classified."""
    top1: float
    """Share of correct first guesses, in [0, 1]."""


def sample_images(
    location: str, split: str, name: str | None = None, *, count: int = SAMPLE
) -> tuple[str, list[tuple[bytes, str]]]:
    """Read images spread evenly over a split.

    Args:
        location: folder or URI of the shards.
        split: name of the split.
        name: name of the data set, where the folder holds several.
        count: largest number of images.

    Returns:
        The digest of the split's manifest, and (encoded image, WordNet id) of each image.

    Raises:
        sharding.ShardingError: the shards are missing or incomplete.
        OSError: a shard cannot be read.
    """
    from sharding import load_index, load_manifest
    from sharding.storage import Folder

    manifest = load_manifest(location, split, name)
    rows = load_index(location, manifest).select(["shard", "offset", "size", "label"]).to_pylist()
    count = min(count, len(rows))
    chosen = [rows[(2 * k + 1) * len(rows) // (2 * count)] for k in range(count)]
    folder = Folder.open(location)
    images = []
    for row in chosen:
        with folder.open_input(manifest.shards[row["shard"]].name) as shard:
            shard.seek(row["offset"])
            images.append((shard.read(row["size"]), manifest.classes[row["label"]].wnid))
    return manifest.digest, images


def verify(model_uri: str, tracking_uri: str, card: ModelCard, images: list[tuple[bytes, str]]) -> Verification:
    """Load the model in a clean process and compare its top-1 on the images with the card's.

    The process cannot use the `transxnet` of this checkout: the model must bring its own. The top-1 may differ by
    `tolerance`.

    Args:
        model_uri: `models:/` URI of the logged model.
        tracking_uri: MLflow server that holds the model.
        card: the model's card.
        images: (encoded image, WordNet id) of each image.

    Raises:
        TrackingError: the model does not load, uses this checkout's code, or is not as good as recorded.
    """
    with tempfile.TemporaryDirectory(prefix="register-") as name:
        folder = Path(name)
        labels = {}
        for k, (content, wnid) in enumerate(images):
            (folder / f"{k:06d}.img").write_bytes(content)
            labels[f"{k:06d}.img"] = wnid
        guesses = _classify(model_uri, tracking_uri, folder)
    correct = sum(guesses[file] == wnid for file, wnid in labels.items())
    result = Verification(samples=len(images), top1=correct / len(images))
    if card.metric is not None and abs(result.top1 - card.metric.value) > tolerance(card, len(images)):
        raise TrackingError(
            f"{card.name}: loaded in a clean process the model gets {correct} of {len(images)} validation images "
            f"right, but its recorded top-1 is {card.metric.value:.4f}: it was not registered"
        )
    return result


def tolerance(card: ModelCard, samples: int) -> float:
    """Return how far the top-1 of a sample may be from the recorded one.

    Four standard deviations of a sample drawn without replacement, plus one image or 0.01, whichever is larger. A
    sample that is the whole split has no deviation.
    """
    total = max(card.validation_samples, samples)
    top1 = card.metric.value if card.metric else 0.0
    # Near 0 and 1 the estimate of the spread vanishes: add one correct and one wrong guess, as Wilson does.
    smoothed = (top1 * total + 1) / (total + 2)
    finite_population = (total - samples) / max(total - 1, 1)
    return 4 * math.sqrt(smoothed * (1 - smoothed) / samples * finite_population) + max(1 / samples, 0.01)


def _classify(model_uri: str, tracking_uri: str, folder: Path) -> dict[str, str]:
    """Run `clean_process.py` without this checkout on its path; return the WordNet id of each file's first guess."""
    script = Path(__file__).with_name("clean_process.py")
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {
        **environment_without_rank(),
        **bound_requests(timeout_s=60, retries=2),
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PYTHONPATH": os.pathsep.join(entry for entry in paths if Path(entry).resolve() != PROJECT_ROOT),
    }
    # -P: Python does not search the script's own folder for modules.
    command = [sys.executable, "-P", str(script), model_uri, str(folder)]
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
