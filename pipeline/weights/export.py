"""Writes `RUN_DIR/export` at the end of a training: the averaged weights and their model card."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from pipeline.checkpoint.store import CheckpointStore
from pipeline.common.atomic import replacing
from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.run.config import read_config
from pipeline.run.files import read_metrics
from pipeline.tasks import find_task
from pipeline.weights.card import CARD_NAME, EXPORT_FOLDER, WEIGHTS_NAME, ModelCard, Preprocessing, save_model_card
from sharding import load_manifest


def export_weights(ema: Ema, config: TrainConfig, run_dir: Path, world: World, epoch: Callable[[int], float]) -> None:
    """Write `export/model.safetensors` and then `export/model.json`, on rank 0. Collective: every rank calls it.

    Args:
        ema: moving average of the weights.
        config: the training's configuration.
        run_dir: the run's directory, whose last record holds an evaluation, unless it is made later.
        world: this rank's place.
        epoch: maps a step to the passes over the training split until then.
    """
    state = ema.full_state()
    if not world.is_main:
        return
    folder = run_dir / EXPORT_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / CARD_NAME).unlink(missing_ok=True)
    published = find_task(config.task).to_published(state)
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in published.items()}
    with replacing(folder / WEIGHTS_NAME, durable=True) as temporary:
        save_file(weights, temporary)

    train = load_manifest(config.data.shards, config.data.train_split, config.data.name)
    validation = load_manifest(config.data.validation_location, config.data.validation_split, config.data.name)
    store = CheckpointStore(run_dir)
    manifest = store.read(store.steps()[-1]).manifest
    task = read_config(run_dir).task
    last = read_metrics(run_dir)[-1]
    card = ModelCard(
        name=config.model.name,
        num_classes=len(train.classes),
        image_size=config.model.image_size,
        classes=tuple((entry.wnid, entry.name) for entry in train.classes),
        preprocessing=Preprocessing(mean=config.augment.mean, std=config.augment.std, **task.preprocessing(config)),
        step=manifest["step"],
        epoch=epoch(manifest["step"]),
        task=task.name,
        scores=task.scores.of_record(last),
        validation_samples=validation.num_samples,
        train_digest=train.digest,
        validation_digest=validation.digest,
        git_commit=read_config(run_dir).git_commit,
        mlflow_run_id=manifest["mlflow_run_id"],
    )
    save_model_card(card, folder)
