"""The micro-batch that a launch with `--train.micro-batch-size auto` goes on with."""

from pathlib import Path

from pipeline.config.paths import absolute_path
from pipeline.launch.options import LaunchOptions
from pipeline.launch.origin import begins_again
from pipeline.run.files import CONFIG_NAME
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch


def kept_micro_batch(run_dir: Path, options: LaunchOptions) -> FoundMicroBatch | None:
    """Return the micro-batch that was found for a run, in its folder or in the mirror that it is brought from.

    Args:
        run_dir: folder of the run; it may be missing.
        options: the flags `--from` and `--begin-again`.

    Returns:
        None if none was found, or if the run begins again and finds another one.

    Raises:
        RunDirectoryError: the file is damaged.
        MirrorError: there is no complete checkpoint in the mirror, or the store does not answer.
    """
    if options.mirrored_from is not None and not (run_dir / CONFIG_NAME).exists():
        # Other launches do not wait for what a mirror's files are read with.
        from pipeline.mirror.fetch import read_micro_batch_to_bring

        return read_micro_batch_to_bring(absolute_path(options.mirrored_from))
    return None if options.begin_again and begins_again(run_dir) else read_micro_batch(run_dir)
