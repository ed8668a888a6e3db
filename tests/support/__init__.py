"""What tests of several packages share: small shards, ranks, attempts, MLflow servers and runs."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "../shared/imagenet-sample"
"""Photographs of ImageNet, where the machine has them."""
