"""Proof that a model works for others: loaded in a clean process, it must reach the recorded top-1 on real images."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.processes import PROJECT_ROOT, environment_without_rank, preemption_blocked
from pipeline.common.secrets import mask_secrets
from pipeline.tracking.client import TrackingError, bound_requests
from pipeline.weights.card import ModelCard

SAMPLE = 64
"""Images that are classified; enough to notice a wrong resize, normalisation or class order."""
CHECK_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a clean process answered."""

    samples: int
    """Images that were classified."""
    top1: float
    """Share whose first guess was right."""


def sample_images(config: Mapping[str, Any], count: int = SAMPLE) -> tuple[str, list[tuple[bytes, str]]]:
    """Images spread evenly over the validation split.

    Args:
        config: the training's, as in `config.json` under `train`.
        count: at most so many.

    Returns:
        The digest of the split's manifest, and (encoded image, WordNet id) of each.

    Raises:
        sharding.ShardingError: the shards are not there or not whole.
        OSError: a shard cannot be read.
    """
    from sharding import load_index, load_manifest
    from sharding.storage import Folder

    data = config["data"]
    location = data["validation_shards"] or data["shards"]
    manifest = load_manifest(location, data["validation_split"])
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

    The process runs outside this project's folder, so `transxnet` must come with the model. With a sample of the
    split four standard deviations are allowed, with all of it one image in a hundred.

    Raises:
        TrackingError: the model does not load, or is not as good as recorded.
    """
    with tempfile.TemporaryDirectory(prefix="register-") as name:
        folder = Path(name)
        truth = {}
        for k, (content, wnid) in enumerate(images):
            (folder / f"{k:06d}.img").write_bytes(content)
            truth[f"{k:06d}.img"] = wnid
        answers = _run_check(model_uri, tracking_uri, folder)
    correct = sum(answers[file] == wnid for file, wnid in truth.items())
    result = Verification(samples=len(images), top1=correct / len(images))
    if card.top1 is not None and abs(result.top1 - card.top1) > tolerance(card, len(images)):
        raise TrackingError(
            f"{card.name}: loaded in a clean process the model gets {correct} of {len(images)} validation images "
            f"right, but its recorded top-1 is {card.top1:.4f}: it was not registered"
        )
    return result


def tolerance(card: ModelCard, samples: int) -> float:
    """How far the top-1 of a sample may be from the recorded one."""
    total = max(card.validation_samples, samples)
    top1 = card.top1 or 0.0
    # Near 0 and 1 the estimate of the spread vanishes: count one more of each, as Wilson does.
    smooth = (top1 * total + 1) / (total + 2)
    left_out = (total - samples) / max(total - 1, 1)
    return 4 * math.sqrt(smooth * (1 - smooth) / samples * left_out) + max(1 / samples, 0.01)


def _run_check(model_uri: str, tracking_uri: str, folder: Path) -> dict[str, str]:
    script = Path(__file__).with_name("clean_process.py")
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {
        **environment_without_rank(),
        **bound_requests(timeout_s=60, retries=2),
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PYTHONPATH": os.pathsep.join(entry for entry in paths if Path(entry).resolve() != PROJECT_ROOT),
    }
    # -P: the script's own folder is not searched for modules.
    command = [sys.executable, "-P", str(script), model_uri, str(folder)]
    with preemption_blocked():  # a job that is asked to stop sends the signal to all its processes
        check = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    try:
        _, said = check.communicate(timeout=CHECK_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise TrackingError(f"{model_uri} did not answer within {CHECK_TIMEOUT_S} s in a clean process") from error
    finally:
        check.kill()
        check.wait()
    if check.returncode != 0:
        last = mask_secrets(said.strip().splitlines()[-1] if said.strip() else f"code {check.returncode}")
        raise TrackingError(f"{model_uri} does not load and answer in a clean process: {last}")
    result = json.loads((folder / "answers.json").read_text())
    if Path(result["code"]).is_relative_to(PROJECT_ROOT):
        raise TrackingError(f"{model_uri} did not bring its own transxnet: {result['code']} was used")
    return result["answers"]
