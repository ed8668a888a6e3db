"""What the launcher shows while a job runs, read from the run's own files: a bar on a terminal, lines in a log."""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import Outcome, Update
from pipeline.files import read_json
from pipeline.model_card import CARD_NAME, EXPORT_FOLDER, WEIGHTS_NAME, is_exported
from pipeline.register_name import REGISTERED_NAME
from pipeline.run_files import CONFIG_NAME, METRICS_NAME
from pipeline.tracking_behind import BehindWatch, steps_waiting
from pipeline.tracking_client import local_database
from pipeline.tracking_state import load_state, tracking_uri_of
from pipeline.words import duration

if TYPE_CHECKING:
    from pipeline.status_data import RunStatus

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""
TAIL_BYTES = 4096


def newest_record(run_dir: Path) -> dict[str, Any] | None:
    """The last whole record of the journal, from its last bytes alone."""
    return next(recent_records(run_dir), None)


def recent_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the last whole records of the journal, newest first, from its last bytes alone."""
    try:
        with (run_dir / METRICS_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in reversed(lines[:-1]):
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def loss_words(record: dict[str, Any]) -> str:
    """The loss of a record, `-` for a batch that was left out."""
    return "-" if record["loss"] is None else f"{record['loss']:.4f}"


class Progress:
    """Shows how jobs stand and how far their trainings are: one bar, or lines, over all requeues."""

    def __init__(self, runs: Mapping[str, Path], total_steps: int) -> None:
        """Follow runs, by the names they are shown under (a single one by ""), to `total_steps` together."""
        self._runs = runs
        self._total = total_steps
        self._states: dict[str, str] = {}
        self._evaluated: dict[str, int] = {}
        self._unsent: dict[str, int] = {}
        self._behind = {name: BehindWatch() for name in runs}
        self._bar: Any = None
        self._shown = (0.0, -1)
        self._first: tuple[float, int] | None = None

    def show(self, name: str, update: Update) -> None:
        """Take one look at the job of a run; prints where something changed."""
        if str(update) != self._states.get(name):
            self._states[name] = str(update)
            self._print(f"{name or 'job'} is {update}")
        self._show_evaluation(name)
        self._show_behind(name)
        records = [record for run_dir in self._runs.values() if (record := newest_record(run_dir)) is not None]
        if not records:
            return
        step, now = sum(int(record["step"]) for record in records), time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = (now, step)
        facts = {"runs": f"{len(records)}/{len(self._runs)}"}
        if len(self._runs) == 1:
            facts = {"loss": loss_words(records[0]), "images/s": f"{records[0]['images_per_s']:.0f}"}
        if any(self._unsent.values()):
            facts["unsent"] = str(sum(self._unsent.values()))
        if sys.stderr.isatty():
            self._show_bar(step, facts)
        elif step != self._shown[1] and (now - self._shown[0] >= LINE_EVERY_S or step == self._total):
            self._shown = (now, step)
            remaining = ""
            if step > self._first[1]:
                seconds = (now - self._first[0]) / (step - self._first[1]) * (self._total - step)
                remaining = f"  remaining {duration(seconds)}"
            words = "  ".join(f"{key} {value}" for key, value in facts.items())
            print(f"step {step}/{self._total}  {words}{remaining}", flush=True)

    def _show_evaluation(self, name: str) -> None:
        evaluated = (record for record in recent_records(self._runs[name]) if "eval_top1" in record)
        newest = next(evaluated, None)
        if newest is not None and newest["step"] > self._evaluated.get(name, 0):
            self._evaluated[name] = newest["step"]
            self._print(f"{name}{': ' if name else ''}step {newest['step']}: top-1 {newest['eval_top1']:.4f}")

    def _show_behind(self, name: str) -> None:
        state, record = load_state(self._runs[name]), newest_record(self._runs[name])
        step = int(record["step"]) if record else 0
        self._unsent[name] = steps_waiting(state, step)
        for line in self._behind[name].look(state, step):
            self._print(f"{name}{': ' if name else ''}{line}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def _show_bar(self, step: int, facts: dict[str, str]) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=self._total, initial=step, unit="step", dynamic_ncols=True)
        self._bar.n = step
        self._bar.set_postfix(facts)


def closing_words(run_dir: Path, outcome: Outcome) -> str:
    """The last lines of a launch: what came of it, where everything is, what to type next."""
    lines = [""]
    registered = read_json(run_dir / REGISTERED_NAME)
    card = read_json(run_dir / EXPORT_FOLDER / CARD_NAME)
    record = newest_record(run_dir)
    document = read_json(run_dir / CONFIG_NAME) or {}
    data = document.get("train", {}).get("data", {})
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
        shards = data["validation_shards"] or data["shards"]
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
    from pipeline.status import table
    from pipeline.status_data import read_status

    statuses = [read_status(run_dir) for run_dir in run_dirs]
    finished = [status for status in statuses if status.registered]
    lines = ["", *table(statuses, folder), ""]
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
