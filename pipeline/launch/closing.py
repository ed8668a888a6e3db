"""The last lines of a launch: the result, where everything is, and what to type next."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import Outcome
from pipeline.common.secrets import mask_secrets
from pipeline.run.config import read_config
from pipeline.run.evaluations import awaiting
from pipeline.run.files import LOGS, newest_record, read_registered
from pipeline.tasks import Metric, stored_metric
from pipeline.tracking.address import local_database, registry_uri
from pipeline.tracking.settle import is_settled
from pipeline.tracking.state import load_state, tracking_uri_of
from pipeline.weights.card import EXPORT_FOLDER, WEIGHTS_NAME, ModelCard, is_exported, load_model_card

if TYPE_CHECKING:
    from pipeline.run.status import RunStatus

_COMMAND = re.compile(r"^(    |follow it: )((?:python|mlflow) )", re.MULTILINE)
"""A command that a user can type, on a line of its own or after these words."""


def describe_end(run_dir: Path, outcome: Outcome) -> str:
    """Return the last lines of a launch, after an empty one.

    Args:
        run_dir: folder of the run.
        outcome: how the job ended, or DETACHED if it goes on without the launcher.
    """
    card = load_model_card(run_dir / EXPORT_FOLDER) if is_exported(run_dir) else None
    registered = read_registered(run_dir)
    lines = [
        "",
        *_result(run_dir, outcome, card),
        *_spent(run_dir),
        *_paths(run_dir, has_weights=card is not None),
    ]
    if registered:
        lines += _registered_model(run_dir, registered, card)
    elif outcome is Outcome.FINISHED and awaiting(run_dir):
        lines += _unevaluated(run_dir)
    elif outcome is Outcome.FINISHED:
        lines.append("the model is not registered yet; when the tracking server answers:")
        lines.append(f"    python -m pipeline.register {run_dir}")
    if outcome is not Outcome.DETACHED:
        lines += _unsent(run_dir)
    return as_typed("\n".join(lines))


def as_typed(text: str) -> str:
    """Return lines as they are; in a launch by `uv run` each command begins with these words, as the next one must."""
    return _COMMAND.sub(r"\1uv run \2", text) if "UV_RUN_RECURSION_DEPTH" in os.environ else text


def _result(run_dir: Path, outcome: Outcome, card: ModelCard | None) -> Iterator[str]:
    """Yield what was trained, or how to go on."""
    if outcome is Outcome.FINISHED and card:
        scores = card.of_task.scores.describe(card.scores) if card.scores else "not evaluated yet"
        yield f"trained {card.name}: {scores} on {card.validation_samples:,} validation images, {card.step:,} steps"
    elif outcome is Outcome.DETACHED:
        yield describe_return(run_dir)
    else:
        record = newest_record(run_dir)
        step = record["step"] if record else 0
        yield f"the training is {outcome.value} after step {step}; to go on, repeat the command with:"
        yield f"    --run-dir {run_dir}"


def _spent(run_dir: Path) -> Iterator[str]:
    """Yield what the run has used so far, and its goodput, if it has begun."""
    from pipeline.run.status import read_status
    from pipeline.run.usage import read_usage

    status = read_status(run_dir)
    if status.attempts:
        used = read_usage(run_dir, status.attempts).describe()
        share = "" if status.goodput is None else f"; goodput {100 * status.goodput:.0f} %"
        yield f"used      {used}{share}"


def describe_return(run_dir: Path) -> str:
    """Return how to follow a run or a sweep again that goes on without the launcher."""
    return f"""to follow it again, one of:
    the same command with --run-dir {run_dir}
    python -m pipeline.status {run_dir} --watch"""


def _paths(run_dir: Path, *, has_weights: bool) -> Iterator[str]:
    """Yield where the run, its logs, its weights and its tracking database are."""
    yield f"run       {run_dir}"
    yield f"logs      {run_dir / LOGS}"
    if has_weights:
        yield f"weights   {run_dir / EXPORT_FOLDER / WEIGHTS_NAME}"
    database = _tracking_database(run_dir)
    if database:
        yield f"tracking  {database}"


def _tracking_database(run_dir: Path) -> str | None:
    """Return the URI of the database that holds the run's metrics; None if a server holds them."""
    try:
        uri = tracking_uri_of(run_dir)
    except ValueError:
        return None
    return uri if local_database(uri) is not None else None


def _unevaluated(run_dir: Path) -> Iterator[str]:
    """Yield who evaluates the last checkpoints of a finished run and registers its model, or how to have it done."""
    from pipeline.launch.evaluation import will_be_evaluated

    if will_be_evaluated(run_dir):
        yield "the model is registered by the job that evaluates its last checkpoints:"
        yield f"    python -m pipeline.status {run_dir} --watch"
        return
    steps = ", ".join(map(str, awaiting(run_dir)))
    yield f"step {steps} awaits its evaluation, and no job is left for it; to evaluate it and register the model:"
    yield f"    the same command with --run-dir {run_dir}"
    yield "to register it without:"
    yield f"    python -m pipeline.register {run_dir}"


def _registered_model(run_dir: Path, registered: dict[str, Any], card: ModelCard | None) -> list[str]:
    """Return the registered version, and the commands that show, evaluate and load it.

    Args:
        run_dir: folder of the run.
        registered: content of `registered.json`.
        card: of the exported weights, if there is one.
    """
    name, version, aliases = registered["name"], registered["version"], registered["aliases"]
    # A version that another one has overtaken has neither @latest nor @champion.
    pointers = ", ".join(f"@{alias}" for alias in aliases) or "no alias"
    step = registered.get("step")
    best = f", the best weights, of step {step:,}" if card and step not in (None, card.step) else ""
    by_use = sorted(aliases, key=lambda alias: alias != "champion")
    uri = f"models:/{name}@{by_use[0]}" if by_use else f"models:/{name}/{version}"
    database = _tracking_database(run_dir)
    store = f"--backend-store-uri {database}" if database else "(your tracking server)"
    setting = f'mlflow.set_tracking_uri("{database}"); ' if database else ""
    registry = registry_uri()
    if registry is not None:
        setting += f'mlflow.set_registry_uri("{mask_secrets(registry)}"); '
        store += f" --registry-store-uri {mask_secrets(registry)}" if database else ""
    shards, _, data_name = read_config(run_dir).validation_split
    which = f" --data-name {shlex.quote(data_name)}" if data_name else ""
    lines = [
        f"model     models:/{name}/{version} ({pointers}){best}",
        *([f"registry  {mask_secrets(registry)} (MLFLOW_REGISTRY_URI)"] if registry else []),
        "next:",
        f"    mlflow ui {store}",
        *_page(run_dir),
        f"    python -m pipeline.evaluate {shlex.quote(uri)} --shards {shlex.quote(shards)}{which}",
        f"    python -c 'import mlflow; {setting}model = mlflow.pyfunc.load_model(\"{uri}\")'",
    ]
    if "champion" not in aliases:
        lines.append("    # @champion is another version: better, or measured on other images; to move it here:")
        lines.append(f"    python -m pipeline.register {run_dir} --alias champion")
    return lines


def _page(run_dir: Path) -> Iterator[str]:
    """Yield the address of the run's page on that server.

    Without its last parameter, MLflow shows the pages for language models instead.
    """
    state = load_state(run_dir)
    if state is not None and state.run_id is not None:
        path = f"experiments/{state.experiment_id}/runs/{state.run_id}"
        yield f"    and open http://127.0.0.1:5000/#/{path}?workflowType=machine_learning"


def _unsent(run_dir: Path) -> Iterator[str]:
    """Yield how to send MLflow what it has not received."""
    state = load_state(run_dir)
    if state is not None and not is_settled(state):
        yield f"MLflow at {state.tracking_uri} has not received everything; when it answers:"
        yield f"    python -m pipeline.status --sync {run_dir}"


def describe_sweep_end(folder: Path, run_dirs: Sequence[Path]) -> str:
    """Return the last lines of a sweep: a table of its runs, the best of them, and what to type next."""
    from pipeline.run.status import read_status
    from pipeline.status.show import format_table

    statuses = [read_status(run_dir) for run_dir in run_dirs]
    registered = [status for status in statuses if status.registered]
    evaluated = [status for status in registered if _registered_metric(status) is not None]
    lines = ["", *format_table(statuses, folder), ""]
    if evaluated:
        best = reduce(_better, evaluated)
        metric = _registered_metric(best)
        model = best.registered or {}
        uri = f"models:/{model.get('name')}/{model.get('version')}"
        value = "" if metric is None else f"{best.metric_label} {metric.value:.4f}, "
        lines.append(f"best      {best.run_dir.name}: {value}{uri}")
    lines.append(f"sweep     {folder}")
    finished = sum(map(is_exported, run_dirs))
    if finished < len(statuses):
        lines.append(f"{len(statuses) - finished} of {len(statuses)} runs are not finished; to go on with them:")
        lines.append(f"    the same command with --run-dir {folder}")
    elif len(registered) < finished:
        lines.append(f"{finished - len(registered)} of {finished} models are not registered; when the server answers:")
        lines.append(f"    the same command with --run-dir {folder}")
    lines.append(f"    python -m pipeline.status {folder}")
    return as_typed("\n".join(lines))


def _registered_metric(status: "RunStatus") -> Metric | None:
    """Return the primary metric of the registered weights, which need not be the run's last."""
    return stored_metric(status.registered or {}) or status.metric


def _better(one: "RunStatus", other: "RunStatus") -> "RunStatus":
    """Return the run with the better registered weights; of equals the first."""
    challenger = _registered_metric(other)
    return other if challenger is not None and challenger.beats(_registered_metric(one)) else one
