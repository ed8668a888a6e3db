"""Distances between two images, and between two samples of a distribution."""

import numpy as np


def distance(a: object, b: object) -> float:
    return float(np.abs(np.asarray(a).astype(np.int64) - np.asarray(b)).mean())


def quantiles_apart(a: np.ndarray, b: np.ndarray) -> float:
    levels = np.linspace(0.05, 0.95, 19)
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).max())
