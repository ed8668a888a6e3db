"""Load a registered model in one line and classify an image.

    uv run python tests/examples/classify.py IMAGE

It needs a model in `runs/mlflow.db`: from the demo (`python -m pipeline.launch --recipe demo`), or from `train.py`.
"""

import sys

import mlflow

import transxnet


def main(image: str) -> None:
    """Print the most probable classes of an image, and how many parameters the network has."""
    mlflow.set_tracking_uri("sqlite:///runs/mlflow.db")  # or set the variable MLFLOW_TRACKING_URI
    model = mlflow.pyfunc.load_model("models:/transxnet_n@champion")
    table = model.predict([image])  # paths, bytes of JPEG or PNG files, base64 text, pixel arrays, tables of these
    for best in table["top5"][0]:
        print(f"{best['class_name']:<12} {best['probability']:.3f}")

    network = transxnet.transxnet_n(pretrained="models:/transxnet_n@champion")  # or a run directory, or a file
    print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters")


if __name__ == "__main__":
    main(sys.argv[1])
