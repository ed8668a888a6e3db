"""The command `python -m pipeline.evaluate MODEL --shards U`: measures a model and prints a summary."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.common.cli import print_error
from pipeline.common.errors import InputError

if TYPE_CHECKING:
    from pipeline.weights.load import LoadedModel


def main(
    model: str,
    /,
    *,
    shards: str,
    split: str = "validation",
    data_name: str | None = None,
    name: str | None = None,
    entry: str | None = None,
    subset: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
    output: Path | None = None,
    no_log: bool = False,
) -> int:
    """Measure the scores of a model's task, overall and for each class, and the throughput.

    Args:
        model: A run directory, a models:/ URI, or a file of weights (.safetensors, .pth, .pt, .bin, .ckpt).
        shards: Folder or URI with the split's manifest.
        split: Split to evaluate on.
        data_name: Which data set, where the folder holds several (sharding.build --name).
        name: Name of the data in MLflow, such as imagenet-v2; by default the name in its manifest.
        entry: Entry of the file to take, such as state_dict; by default averaged weights if there are some.
        subset: Let only the split's own classes compete, as ImageNet-A and -R are scored.
        precision: Arithmetic of the forward.
        workers: Loader processes.
        output: JSON file that gets every measured value.
        no_log: Do not add the result to the MLflow run that the model came from.
    """
    # A shell leaves `~` in `--output=~/report.json`.
    output = None if output is None else Path(os.path.expanduser(output))
    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no such folder")
    from pipeline.weights.load import load_model

    loaded = load_model(model, entry)
    from pipeline.evaluate.measure import evaluate

    report, manifest = evaluate(
        loaded, shards, split, data_name=data_name, subset=subset, precision=precision, workers=workers
    )
    print("\n".join(report.lines(f"{loaded.card.name} on {manifest.stem}", loaded.origin)))
    if output is not None:
        output.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"  everything         {output}")
    if no_log or loaded.card.mlflow_run_id is None:
        return 0
    from pipeline.evaluate.log import log_report

    return _log(model, loaded, lambda: log_report(loaded, report, manifest, name or manifest.stem))


def _log(model: str, loaded: "LoadedModel", log: Callable[[], str]) -> int:
    """Log a result in MLflow, and print where or why not; return the exit status."""
    from pipeline.tracking.client import describe_failure

    try:
        run = log()
    except Exception as error:
        refusal = f"MLflow at {loaded.tracking_uri} does not take it"
        print_error(f"the result is not added to MLflow: {describe_failure(error, refusal)}")
        return 1
    print(f"  MLflow             run {run}")
    if Path(model).is_dir():
        from pipeline.tracking.settle import settle_after_contact

        settle_after_contact(Path(model))
    return 0
