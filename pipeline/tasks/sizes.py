"""Sizes of resized images, for every task whose images keep their ratio. No torch."""


def fit(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of an image that is resized, ratio kept, to fit into a longest and a shortest side."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)
