"""The end of a run whose evaluations are made beside its training: whoever comes last registers the model.

The training calls `complete` at its end, an evaluation job at its own, and the launcher when it follows both: the call
does nothing until the training has exported its weights and no checkpoint awaits its evaluation any more.
"""

import dataclasses
import fcntl
import time
from pathlib import Path

from jobs import JobError, attach
from pipeline.common.errors import PipelineError, one_line
from pipeline.run.config import read_config
from pipeline.run.evaluations import awaiting
from pipeline.run.files import EVALUATIONS, LOGS, durable_step, is_registered, read_metrics
from pipeline.run.journal import Journal
from pipeline.run.recorder import log
from pipeline.run.status import run_state
from pipeline.weights.card import EXPORT_FOLDER, is_exported, load_model_card, save_model_card

END_S = 120.0
"""How long an evaluation of the last step waits for the end of the training, which may be seen late on a shared disk,
and of the process that sends its metrics to MLflow."""
LOCK_NAME = ".completion.lock"


def is_complete(run_dir: Path) -> bool:
    """Whether a finished run has its last scores, and is registered."""
    if not is_exported(run_dir) or not is_registered(run_dir):
        return False
    return not awaiting(run_dir) and bool(load_model_card(run_dir / EXPORT_FOLDER).scores)


def wait_for_end(run_dir: Path) -> bool:
    """Wait a while for the training's end if its last step is evaluated; return whether the training has ended."""
    total = read_config(run_dir).total_steps
    deadline = time.monotonic() + END_S
    while True:
        if is_exported(run_dir) and run_state(run_dir) == "finished":
            return True
        if time.monotonic() >= deadline or durable_step(run_dir) != total:
            return False
        time.sleep(0.5)


def complete(run_dir: Path) -> bool:
    """Give the exported weights their scores and register the best ones, once nothing is left to evaluate.

    Nothing is raised: what fails is logged, with the command that repeats it.

    Returns:
        Whether nothing is left to evaluate.
    """
    if not is_exported(run_dir) or awaiting(run_dir):
        return False
    folder = run_dir / EVALUATIONS
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / LOCK_NAME).open("a", encoding="utf-8") as lock:
        # Another process registers the model now; this one then finds it registered.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_complete(run_dir):
            try:
                _write_scores(run_dir)
            except (PipelineError, OSError) as error:
                log(f"warning: the scores of {run_dir / EXPORT_FOLDER} could not be written: {one_line(error)}")
            _send(run_dir)
            from pipeline.register.registration import register_or_explain

            register_or_explain(run_dir)
    return True


def complete_or_explain(run_dir: Path) -> None:
    """Register the model of a training that ends, or say which evaluation it waits for."""
    if read_config(run_dir).evaluation is None:
        from pipeline.register.registration import register_or_explain

        register_or_explain(run_dir)
    elif not complete(run_dir):
        awaits = f"step {', '.join(map(str, awaiting(run_dir)))} awaits its evaluation"
        if has_evaluation_job(run_dir):
            log(f"{awaits}, whose job then registers the model; to see that job: python -m pipeline.status {run_dir}")
        else:
            log(
                f"warning: {awaits}, and no job is left for it: launch again with --run-dir {run_dir} to evaluate it, "
                f"or register the model without it: python -m pipeline.register {run_dir}"
            )


def has_evaluation_job(run_dir: Path) -> bool:
    """Whether an evaluation job waits or runs; one that is held waits too."""
    try:
        job = attach(run_dir / EVALUATIONS / LOGS)
        if job is None:
            return False
        update, outcome = job.poll()
    except JobError:
        return False
    return outcome is None or update.state == "PENDING"


def _write_scores(run_dir: Path) -> None:
    """Write the scores of the last step into its card, and those of all steps into their records."""
    folder = run_dir / EXPORT_FOLDER
    card, records = load_model_card(folder), read_metrics(run_dir)
    last = next((record for record in records if record["step"] == card.step), {})
    save_model_card(dataclasses.replace(card, scores=card.of_task.scores.of_record(last)), folder)
    Journal(run_dir, card.step).close()


def _send(run_dir: Path) -> None:
    """Send MLflow the evaluations that it lacks; log how to send them later if that fails.

    The process that sends beside the training may still be at it, and may not have seen the last ones.
    """
    from pipeline.tracking.settle import settle

    problem, deadline = "another process sends this run to MLflow", time.monotonic() + END_S
    try:
        while settle(run_dir) is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        else:
            return
    except (PipelineError, OSError) as error:
        problem = one_line(error)
    log(f"warning: {problem}; send the rest with: python -m pipeline.status --sync {run_dir}")
