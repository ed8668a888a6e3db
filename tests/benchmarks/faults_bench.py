"""Runs to inject faults into, the uninterrupted runs to compare with, and the table of outcomes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.checks import check
from pipeline.config.schema import TrainConfig
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run.files import read_events, read_metrics
from pipeline.tasks.metric import PREFIX
from tests.support.attempts import FINISHED, RunningAttempt
from tests.support.small_shards import config, pack

EVERY = 3
"""Steps between two checkpoints."""
SHORT, STOPPED = 16, 10
"""Steps of the runs with one fault, and the step at which runs with damaged checkpoints are interrupted."""
TIMEOUT_S = 8.0
"""Seconds that a rank waits for a hanging one."""
COMPARED = ("step", "loss", "lr", "grad_norm")
"""Of a step; and every score of an evaluation."""
BATCH = 4
"""Global batch size of a demo that is shortened."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    times: int
    outcome: str
    recomputed: int
    equal: bool
    seconds: float


class Bench:
    """A folder with shards, the uninterrupted runs, and one run for each fault.

    Attributes:
        recipe: name of the demo that is trained on its own data, in small batches; None: a classifier on noise.
    """

    def __init__(self, folder: Path, recipe: str | None = None) -> None:
        self.folder, self.shards, self.recipe = folder, folder / "shards", recipe
        if recipe is None:
            pack(self.shards, (17, 12, 9, 20))
            pack(self.shards, (16,), split="validation")
        else:
            own_data = RECIPES[recipe].own_data
            assert own_data is not None
            own_data.pack(self.shards)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._references: dict[int, Path] = {}

    def config(self, steps: int) -> TrainConfig:
        """A training whose result depends on every batch, random draw and learning rate."""
        if self.recipe is not None:
            demo = RECIPES[self.recipe].train()
            data = replace(demo.data, shards=str(self.shards), cache_dir=str(self.folder / "cache"))
            changes = {"save_every_steps": EVERY, "eval_every_steps": steps // 2, "log_every_steps": EVERY}
            return check(
                replace(demo, steps=steps, global_batch_size=BATCH, data=data, collective_timeout_s=60.0, **changes),
                2,
            )
        return check(
            config(
                self.shards,
                self.folder / "cache",
                steps=steps,
                global_batch_size=8,
                precision="fp32",
                ema_decay=0.9,
                save_every_steps=EVERY,
                eval_every_steps=2 * EVERY + 1,
                log_every_steps=EVERY,
                collective_timeout_s=TIMEOUT_S,
            ),
            2,
        )

    def prepare(self, name: str, steps: int, parent: Path | None = None) -> Path:
        """A new run directory."""
        run = (parent or self.folder) / name
        run_directory.prepare(run, self.config(steps), {"tracking_uri": "sqlite:///none.db"})
        return run

    def reference(self, steps: int) -> Path:
        """The uninterrupted run of `steps` steps."""
        if steps not in self._references:
            run = self.prepare(f"whole-{steps}", steps)
            finish(run)
            self._references[steps] = run
        return self._references[steps]

    def equal(self, run: Path, steps: int) -> bool:
        """Whether a finished run equals the uninterrupted one."""
        other = self.reference(steps)
        records, expected = (
            [{k: v for k, v in r.items() if k in COMPARED or k.startswith(PREFIX)} for r in read_metrics(each)]
            for each in (run, other)
        )
        weights = [(each / "export" / "model.safetensors").read_bytes() for each in (run, other)]
        return records == expected and weights[0] == weights[1] and len(records) == steps

    def add(self, fault: str, times: int, outcome: str, run: Path, steps: int, recomputed: int, seconds: float) -> None:
        """Compare a finished run with the uninterrupted one, and print its row."""
        row = Row(fault, times, outcome, recomputed, self.equal(run, steps), seconds)
        self.rows.append(row)
        print(line(row), flush=True)


def finish(run: Path, **options: Any) -> str:
    """Run an attempt to the end; returns its output."""
    with RunningAttempt(run, **options) as attempt:
        codes = attempt.wait()
        assert set(codes) == {FINISHED}, f"{codes}\n{attempt.output()[-4000:]}"
        return attempt.output()


def resumed_at(run: Path) -> int:
    """Step at which the newest attempt resumed."""
    starts = [event for event in read_events(run) if event["event"] == "start"]
    return max(starts, key=lambda event: event["attempt"])["step"]


def line(row: Row) -> str:
    """A row of the table."""
    verdict = "bit for bit" if row.equal else "**DIFFERS**"
    return f"| {row.fault} | {row.times} | {row.outcome} | {row.recomputed} | {verdict} | {row.seconds:.0f} |"
