"""Progress of jobs, read from the files of their runs: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import Update
from pipeline.common.console import LINE_EVERY_S, format_remaining
from pipeline.run.config import read_config
from pipeline.run.files import newest_record, read_evaluations, recent_records
from pipeline.tasks import was_evaluated
from pipeline.tracking.backlog import BacklogWatch, steps_waiting
from pipeline.tracking.state import load_state


class Progress:
    """Shows the states of jobs and the steps of their trainings: one bar, or lines, over all requeues."""

    def __init__(self, runs: Mapping[str, Path], total_steps: int) -> None:
        """Follow runs.

        Args:
            runs: folder of each run by the name that is shown; the name of a single run is empty.
            total_steps: optimizer steps of all runs together.
        """
        self._runs = runs
        self._total = total_steps
        self._states: dict[str, str] = {}
        self._evaluated: dict[str, int] = {}
        self._unsent: dict[str, int] = {}
        self._behind = {name: BacklogWatch() for name in runs}
        self._bar: Any = None
        self._last_line_time, self._last_line_step = 0.0, -1
        self._first: tuple[float, int] | None = None
        """Time and step from which the rate is measured."""
        self._attempts: list[int | None] = []
        """Attempts of the newest records, of which it is measured."""

    def show(self, name: str, update: Update) -> None:
        """Print what is new of a run: the state of its job, an evaluation, MLflow's backlog, and the steps of all.

        Args:
            name: name of the run.
            update: state of its job.
        """
        if str(update) != self._states.get(name):
            self._states[name] = str(update)
            self._print(f"{name or 'job'} is {update}")
        self._show_evaluation(name)
        self._show_backlog(name)
        records = [record for run_dir in self._runs.values() if (record := newest_record(run_dir)) is not None]
        if records:
            self._show_steps(records)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _show_evaluation(self, name: str) -> None:
        later = read_evaluations(self._runs[name])
        evaluated = [record for record in (*recent_records(self._runs[name]), *later.values()) if was_evaluated(record)]
        newest = max(evaluated, key=lambda record: record["step"], default=None)
        if newest is not None and newest["step"] > self._evaluated.get(name, 0):
            self._evaluated[name] = newest["step"]
            scores = read_config(self._runs[name]).task.scores
            metric = scores.metric_of_record(newest)
            if metric is not None:
                self._print(f"{_prefix(name)}step {newest['step']}: {scores.label(metric.name)} {metric.value:.4f}")

    def _show_backlog(self, name: str) -> None:
        state, record = load_state(self._runs[name]), newest_record(self._runs[name])
        step = int(record["step"]) if record else 0
        self._unsent[name] = steps_waiting(state, step)
        for line in self._behind[name].look(state, step):
            self._print(f"{_prefix(name)}{line}")

    def _show_steps(self, records: list[dict[str, Any]]) -> None:
        """Move the bar, or print a line if one is due.

        Args:
            records: newest record of each run that has one.
        """
        step, now = sum(int(record["step"]) for record in records), time.monotonic()
        attempts = [record.get("attempt") for record in records]
        if self._first is None or step < self._first[1] or attempts != self._attempts:
            # The time in the queue, and that of a start, is none of the steps.
            self._first, self._attempts = (now, step), attempts
            self._restart_bar(step)
        facts = self._facts(records)
        if sys.stderr.isatty():
            self._show_bar(step, facts)
        elif step != self._last_line_step and (now - self._last_line_time >= LINE_EVERY_S or step == self._total):
            self._last_line_time, self._last_line_step = now, step
            remaining = format_remaining(self._total - step, step - self._first[1], now - self._first[0])
            described = "  ".join(f"{key} {value}" for key, value in facts.items())
            print(f"step {step}/{self._total}  {described}{remaining}", flush=True)

    def _facts(self, records: list[dict[str, Any]]) -> dict[str, str]:
        facts = {"runs": f"{len(records)}/{len(self._runs)}"}
        if len(self._runs) == 1:
            facts = {"loss": format_loss(records[0]), "images/s": f"{records[0].get('images_per_s', 0):.0f}"}
        if any(self._unsent.values()):
            facts["unsent"] = str(sum(self._unsent.values()))
        return facts

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def _restart_bar(self, step: int) -> None:
        """Let the bar measure its rate from now on."""
        if self._bar is not None:
            self._bar.reset(self._total)
            self._bar.initial = self._bar.n = step

    def _show_bar(self, step: int, facts: dict[str, str]) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=self._total, initial=step, unit="step", dynamic_ncols=True)
        self._bar.n = step
        self._bar.set_postfix(facts)


def format_loss(record: dict[str, Any]) -> str:
    """Format the loss of a record; `-` for a batch that was skipped."""
    return "-" if record.get("loss") is None else f"{record['loss']:.4f}"


def _prefix(name: str) -> str:
    return f"{name}: " if name else ""
