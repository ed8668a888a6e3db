"""The check of a teacher before anything is queued."""

from pathlib import Path

from pipeline.config.paths import TIMM
from pipeline.config.schema import TrainConfig
from pipeline.launch.data_checks import NotHereError


def check_teacher(config: TrainConfig, run_dir: Path) -> None:
    """Load the teacher, if there is one, and check that it knows the shards' classes and takes the training's images.

    A model of timm is thereby fetched into the cache of this machine, as compute nodes often have no network.

    Raises:
        NotHereError: the file or folder does not exist.
        ConfigError: there is no such model, it cannot teach, or its weights have changed since the run began.
    """
    source = config.distill
    if source is None:
        return
    if not source.startswith(("models:/", TIMM)) and not Path(source).exists():
        raise NotHereError(
            f"--train.distill {source} does not exist: give a run directory, a models:/ URI, a file of weights, or "
            f"{TIMM}NAME"
        )
    from pipeline.weights.teacher import check_recorded, load_teacher
    from sharding import load_manifest

    manifest = load_manifest(config.data.shards, config.data.train_split, config.data.name)
    teacher = load_teacher(source, [entry.wnid for entry in manifest.classes], config.model.image_size)
    check_recorded(run_dir, source, teacher.digest)
