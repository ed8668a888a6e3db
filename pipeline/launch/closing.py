"""TODO launch.closing."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import Outcome
from pipeline.common.atomic import read_json
from pipeline.run.config import read_config
from pipeline.run.files import REGISTERED_NAME, newest_record
from pipeline.tracking.client import local_database
from pipeline.tracking.state import load_state, tracking_uri_of
from pipeline.weights.card import CARD_NAME, EXPORT_FOLDER, WEIGHTS_NAME, is_exported

if TYPE_CHECKING:
    from pipeline.run.status import RunStatus


def closing_words(run_dir: Path, outcome: Outcome) -> str:
    """The last lines of a launch: what came of it, where everything is, what to type next."""
    lines = [""]
    registered = read_json(run_dir / REGISTERED_NAME)
    card = read_json(run_dir / EXPORT_FOLDER / CARD_NAME)
    record = newest_record(run_dir)
    tracking, state = _local_store(run_dir), load_state(run_dir)
    if outcome is Outcome.FINISHED and card:
        lines.append(
            f"trained {card['name']}: top-1 {card['top1']:.4f}, top-5 {card['top5']:.4f} "
            f"on {card['validation_samples']:,} validation images, {card['step']:,} steps"
        )
    elif outcome is Outcome.DETACHED:
        lines.append(come_back_words(run_dir))
    else:
        step = record["step"] if record else 0
        lines.append(
            f"the training is {outcome.value} after step {step}; the same command with this --run-dir goes on:"
        )
        lines.append(f"    --run-dir {run_dir}")
    lines.append(f"run       {run_dir}")
    lines.append(f"logs      {run_dir / 'submitit'}")
    if card:
        lines.append(f"weights   {run_dir / EXPORT_FOLDER / WEIGHTS_NAME}")
    if tracking:
        lines.append(f"tracking  {tracking}")
    if registered:
        name, version = registered["name"], registered["version"]
        # A run that another overtook has neither of the two.
        aliases = ", ".join(f"@{alias}" for alias in registered["aliases"]) or "no alias"
        step = registered.get("step")
        best = f", the best weights, of step {step:,}" if card and step not in (None, card["step"]) else ""
        lines.append(f"model     models:/{name}/{version} ({aliases}){best}")
        ui = f"--backend-store-uri {tracking}" if tracking else "(your tracking server)"
        setting = f'mlflow.set_tracking_uri("{tracking}"); ' if tracking else ""
        shards, _ = read_config(run_dir).validation_split
        names = sorted(registered["aliases"], key=lambda name: name != "champion")
        uri = f"models:/{name}@{names[0]}" if names else f"models:/{name}/{version}"
        lines += [
            "next:",
            f"    uv run mlflow ui {ui}",
            *_page(run_dir),
            f"    python -m pipeline.evaluate {shlex.quote(uri)} --shards {shlex.quote(shards)}",
            f"    python -c 'import mlflow; {setting}model = mlflow.pyfunc.load_model(\"{uri}\")'",
        ]
        if "champion" not in registered["aliases"]:
            lines.append("    # not @champion, which is better, or was measured on other images; to move it there:")
            lines.append(f"    python -m pipeline.register {run_dir} --alias champion")
    elif outcome is Outcome.FINISHED:
        lines.append("the model is not registered yet; when the tracking server answers:")
        lines.append(f"    python -m pipeline.register {run_dir}")
    if outcome is not Outcome.DETACHED and state is not None and state.sent_status != state.status:
        lines.append(f"MLflow at {state.tracking_uri} has not taken everything; when it answers:")
        lines.append(f"    python -m pipeline.status --sync {run_dir}")
    return "\n".join(lines)


def _local_store(run_dir: Path) -> str | None:
    """The database that a run is tracked in; None where it is a server's matter."""
    try:
        uri = tracking_uri_of(run_dir)
    except ValueError:
        return None
    return uri if local_database(uri) is not None else None


def _page(run_dir: Path) -> list[str]:
    """Where that server shows the run; without the last word it shows its pages for language models."""
    state = load_state(run_dir)
    if state is None or state.run_id is None:
        return []
    path = f"experiments/{state.experiment_id}/runs/{state.run_id}"
    return [f"    and open http://127.0.0.1:5000/#/{path}?workflowType=machine_learning"]


def come_back_words(run_dir: Path) -> str:
    """How somebody who has left comes back."""
    return f"""come back to it:
    the same command with --run-dir {run_dir}
    python -m pipeline.status {run_dir} --watch"""


def _best_top1(status: "RunStatus") -> float:
    return float((status.registered or {}).get("top1") or status.top1 or 0.0)


def sweep_words(folder: Path, run_dirs: Sequence[Path]) -> str:
    """The last lines of a sweep: how every run stands, the best, what to type next."""
    from pipeline.run.status import read_status
    from pipeline.status.show import format_table

    statuses = [read_status(run_dir) for run_dir in run_dirs]
    finished = [status for status in statuses if status.registered]
    lines = ["", *format_table(statuses, folder), ""]
    evaluated = [status for status in finished if status.top1 is not None]
    if evaluated:
        # What is registered are a run's best weights, which need not be its last.
        best = max(evaluated, key=_best_top1)
        model = best.registered or {}
        words = f"top-1 {_best_top1(best):.4f}, models:/{model.get('name')}/{model.get('version')}"
        lines.append(f"best      {best.run_dir.name}: {words}")
    lines.append(f"sweep     {folder}")
    trained = sum(map(is_exported, run_dirs))
    if trained < len(statuses):
        lines.append(f"{len(statuses) - trained} of {len(statuses)} runs are not finished; to go on with them:")
        lines.append(f"    the same command with --run-dir {folder}")
    elif len(finished) < trained:
        lines.append(f"{trained - len(finished)} of {trained} models are not registered; when the server answers:")
        lines.append(f"    the same command with --run-dir {folder}")
    lines.append(f"    python -m pipeline.status {folder}")
    return "\n".join(lines)
