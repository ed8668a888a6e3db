"""`--dry-run`: print what a launch would submit, and make its checks, without writing anything."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TextIO

from jobs import Resources
from pipeline.common.secrets import mask_secrets
from pipeline.config.checks import micro_batch_candidates, with_micro_batch
from pipeline.config.schema import AUTO, TrainConfig
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.launch.checks import check_run, check_start
from pipeline.launch.data_checks import NotHereError
from pipeline.launch.elsewhere import check_mirror_of, describe_run_to_bring
from pipeline.launch.micro_batch import kept_micro_batch
from pipeline.launch.place_checks import describe_slow_precision
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.launch.teacher_check import check_teacher
from pipeline.recipes import RECIPES
from pipeline.run.files import CONFIG_NAME, EVALUATIONS, LOGS
from pipeline.run.micro_batch import with_found
from pipeline.run.sweep import check_folder


def print_plan(plan: Plan) -> None:
    """Print the sbatch script, and the configuration and the DeepSpeed JSON of each run."""
    print(f"# cluster: {plan.cluster} ({plan.why})\n")
    print(mask_secrets(_script(plan)))
    if plan.evaluation is not None:
        in_allocation = plan.options.evaluate == "allocation"
        print("# each evaluation, beside rank 0 and in its job" if in_allocation else "# each evaluation")
        print(mask_secrets(_evaluation_script(plan, plan.evaluation)))
    for run in plan.runs:
        print(f"# {run.run_dir / CONFIG_NAME}")
        content = {"train": dataclasses.asdict(run.config), **plan.run_facts(run.config)}
        print(mask_secrets(json.dumps(content, indent=1)))
        print("\n# DeepSpeed")
        config, note = _with_micro_batch(plan, run)
        print(note + json.dumps(deepspeed_config(config, plan.resources.world_size), indent=1))


def _with_micro_batch(plan: Plan, run: PlannedRun) -> tuple[TrainConfig, str]:
    """Return a training with the micro-batch that `auto` has found, or finds at most, and a line on it; else as it is.

    Raises:
        RunDirectoryError, MirrorError: the micro-batch that was found cannot be read.
    """
    if run.config.micro_batch_size != AUTO:
        return run.config, ""
    world_size, found = plan.resources.world_size, kept_micro_batch(run.run_dir, plan.options)
    if found is not None:
        return with_found(run.config, world_size, found), f"# micro-batch: {found.describe()}, kept for the run\n"
    candidates = micro_batch_candidates(run.config, world_size)
    return with_micro_batch(run.config, world_size), (
        f"# micro-batch: auto: the largest of {', '.join(map(str, candidates))} that fits into the memory of every GPU "
        f"at the first start, kept for the run; on CPUs, and below, {candidates[-1]}\n"
    )


def _script(plan: Plan) -> str:
    """The sbatch script, or what starts on this machine instead."""
    from jobs import dry_run

    return dry_run(
        cluster=plan.cluster,
        folder=plan.logs,
        resources=plan.resources,
        name=plan.name,
        code=plan.code(copy=False),
        elements=len(plan.runs),
    )


def _evaluation_script(plan: Plan, resources: Resources) -> str:
    from jobs import dry_run

    facts = plan.evaluation_facts()
    assert facts is not None
    return dry_run(
        cluster="local" if facts["in_allocation"] else facts["cluster"],
        folder=plan.runs[0].run_dir / EVALUATIONS / LOGS,
        resources=resources,
        name=facts["name"],
        code=plan.code(copy=False),
    )


def _ask_sbatch(plan: Plan) -> str:
    """Have sbatch check the script, where Slurm answers; return what to print about it.

    Raises:
        JobError: sbatch would refuse the job.
    """
    from jobs import SlurmError, check_script, node_groups

    try:
        node_groups()
    except SlurmError as error:
        return f"# sbatch: not asked, because {error}"
    check_script(_script(plan))
    return "# sbatch: would take this script (--test-only)"


def print_checks(plan: Plan) -> None:
    """Make the checks of a launch for all its runs, and print what they find.

    Data and weights that this machine does not see are a warning: the machine that runs the job may see them.

    Raises:
        PipelineError, ShardingError, JobError: a launch would be refused.
    """
    if plan.cluster == "slurm":
        print(_ask_sbatch(plan))
    if plan.options.sweep:
        check_folder(plan.run_dir)
    own_data = RECIPES[plan.options.recipe].own_data
    lines: dict[str, TextIO] = {}
    source = describe_run_to_bring(plan)
    if source is not None:
        lines[f"# from: {source}"] = sys.stdout
    for run in plan.runs:
        try:
            # A run that is brought begins from its checkpoint, and needs no other weights.
            if source is None or (run.run_dir / CONFIG_NAME).exists():
                check_start(run.run_dir, run.config, plan.options)
            check_mirror_of(plan, run)
            own = own_data if own_data is not None and own_data.is_used_by(run.config) else None
            if own is not None and not own.is_packed(Path(run.config.data.shards)):
                lines[f"# data: {own.description}, which the launch packs"] = sys.stdout
                continue
            checked = check_run(run.run_dir, run.config, plan.run_facts(run.config))
            check_teacher(run.config, run.run_dir)
            lines[f"# data: {checked.dataset}; {checked.total_steps:,} steps"] = sys.stdout
            slow = describe_slow_precision(run.config, plan.resources, plan.cluster)
            lines |= {f"warning: {warning}": sys.stderr for warning in (*checked.warnings, *slow)}
        except NotHereError as error:
            lines[f"warning: a launch from here would be refused: {error}"] = sys.stderr
    for line, stream in lines.items():
        print(line, file=stream)
