"""What the launcher shows while a job runs, read from the run's own files: a bar on a terminal, lines in a log."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import Update
from pipeline.common.console import LINE_EVERY_S, duration
from pipeline.run.files import newest_record, recent_records
from pipeline.tracking.backlog import BacklogWatch, steps_waiting
from pipeline.tracking.state import load_state

if TYPE_CHECKING:
    pass


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
        self._behind = {name: BacklogWatch() for name in runs}
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
