"""Helpers of the tests: small shards and networks, ranks, attempts, MLflow servers and run directories."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "../shared/imagenet-sample"
"""Photographs of ImageNet, where the machine has them."""
