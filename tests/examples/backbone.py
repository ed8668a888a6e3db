"""Use TransXNet as a backbone: four maps of features, for a detector or a segmentation head.

    uv run python tests/examples/backbone.py

`pretrained=` takes a run directory, a `models:/` URI or a file; without it the weights are random.
"""

import torch

import transxnet


def main() -> None:
    """Print the shape of each stage's map for two images of 96 x 128 pixels."""
    backbone = transxnet.transxnet_t().eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        maps = backbone.forward_features(images)
    for stride, channels, features in zip((4, 8, 16, 32), backbone.config.dims, maps, strict=True):
        print(f"stride {stride:>2}: {channels} channels, {list(features.shape)}")


if __name__ == "__main__":
    main()
