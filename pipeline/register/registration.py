"""Registers the best weights of a training: `python -m pipeline.register RUN_DIR --alias A`."""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.atomic import file_sha256, write_json
from pipeline.common.errors import one_line
from pipeline.common.secrets import mask_secrets
from pipeline.register.best import best_weights
from pipeline.register.champion import LATEST
from pipeline.register.names import check_alias, check_name
from pipeline.run.files import REGISTERED_NAME, durable_step, read_config, registered_name
from pipeline.run.recorder import say
from pipeline.tracking.client import TrackingError, mlflow_session
from pipeline.tracking.state import load_state, shipping_lock, tracking_uri_of
from pipeline.weights.card import WEIGHTS_NAME, ModelCard, ModelCardError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.register.verify import Verification


WEIGHTS_TAG = "weights_sha256"


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A model version in the registry."""

    name: str
    """Registered model; that of the network, such as `transxnet_t`, unless another was asked for."""
    version: str
    """Number of the version."""
    aliases: tuple[str, ...]
    """All that point to it, `latest` among them (MLflow gives it to the highest number)."""
    uri: str
    """What `mlflow.pyfunc.load_model` takes."""
    step: int
    """Optimizer steps that its weights have seen: the last of the training, or the best."""
    top1: float | None
    """Their accuracy on the validation split, in [0, 1]; None: not evaluated."""


def register(run_dir: str | os.PathLike[str], alias: str | None = None, name: str | None = None) -> RegisteredVersion:
    """Make the best averaged weights of a run a version of the registered model, proven to load and predict.

    The version is created only after the model was loaded in a clean process and reached its recorded top-1 on a
    sample of the validation split. `champion` then moves by the rule (a greater top-1 on the same validation data).
    Registering the same weights again gives the version that is there.

    Args:
        run_dir: a run that has ended, with `export/`.
        alias: an alias to set besides.
        name: registered model; None: as the launch was told, else the network's name.

    Raises:
        TrackingError: the registry does not answer, or the model is not as good as recorded.
        ModelCardError: the run exported nothing.
        ValueError: `run_dir` is no run, or MLflow takes no such name or alias.
    """
    if name is not None:
        check_name(name)
    if alias is not None:
        check_alias(alias)
    folder = Path(run_dir).resolve()
    config = read_config(folder)
    name = name or registered_name(config)
    weights, card = best_weights(folder)
    uri = tracking_uri_of(folder)
    try:
        with mlflow_session(uri) as client:
            card = dataclasses.replace(card, mlflow_run_id=card.mlflow_run_id or _run_id(folder))
            digest = file_sha256(weights / WEIGHTS_NAME)
            version = _find(client, name, digest, card)
            if version is None:
                version = _create(client, name, uri, folder, weights, config["train"], card, digest)
            if alias is not None and alias.lower() != LATEST:
                client.set_registered_model_alias(name, alias, str(version.version))
            aliases = sorted(client.get_model_version(name, str(version.version)).aliases)
            newest = str(client.get_model_version_by_alias(name, LATEST).version)
    except (TrackingError, ModelCardError):
        raise
    except Exception as error:
        raise TrackingError(f"the registry at {mask_secrets(uri)} failed: {one_line(error)}") from error
    if newest == str(version.version):
        aliases = [LATEST, *(other for other in aliases if other != LATEST)]
    pointer = "@champion" if "champion" in aliases else f"/{version.version}"
    done = RegisteredVersion(
        name=name,
        version=str(version.version),
        aliases=tuple(aliases),
        uri=f"models:/{name}{pointer}",
        step=card.step,
        top1=card.top1,
    )
    _remember(folder, done)
    return done


def _remember(run_dir: Path, version: RegisteredVersion) -> None:
    """Write `RUN_DIR/registered.json`, for the commands that tell where the model is."""
    write_json(run_dir / REGISTERED_NAME, dataclasses.asdict(version))


def _run_id(run_dir: Path) -> str:
    """Id of the run's MLflow run, which is made now if the server never answered before."""
    state = load_state(run_dir)
    if state is None or state.run_id is None:
        from pipeline.tracking.shipper import Shipper

        with shipping_lock(run_dir, wait=False) as free:
            if not free:
                raise TrackingError(f"the MLflow run of {run_dir} is not made yet: register it when the training ended")
            shipper = Shipper(run_dir)
            shipper.ship(durable_step(run_dir))
            state = shipper.state
    if state.run_id is None:
        raise TrackingError(f"{run_dir} has no MLflow run")
    return state.run_id


def _find(client: "MlflowClient", name: str, digest: str, card: ModelCard) -> "ModelVersion | None":
    """The version made of the same weights in the same run."""
    from pipeline.register.champion import SETTLED, STATE_TAG, all_versions

    for version in all_versions(client, name).values():
        tags = version.tags
        same = tags.get(WEIGHTS_TAG) == digest and version.run_id == card.mlflow_run_id
        if same and tags.get(STATE_TAG) == SETTLED:
            return version
    return None


def _create(
    client: "MlflowClient",
    name: str,
    uri: str,
    run_dir: Path,
    weights: Path,
    train: dict,
    card: ModelCard,
    digest: str,
) -> "ModelVersion":
    """Log the model, verify it, create the version and decide on the champion."""
    from mlflow.exceptions import MlflowException

    from pipeline.register import champion as register_aliases
    from pipeline.register.mlflow_model import describe, log_model

    model_id = log_model(client, run_dir, weights, card)
    verification = _verify(f"models:/{model_id}", uri, train, card)
    client.finalize_logged_model(model_id, "READY")
    tags = {**version_tags(card), WEIGHTS_TAG: digest, register_aliases.STATE_TAG: register_aliases.OPEN}
    if verification is not None:
        tags["verified"] = f"top-1 {verification.top1:.4f} on {verification.samples} images in a clean process"
    try:
        client.create_registered_model(name, description=f"TransXNet image classifiers ({card.name}).")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    settled = register_aliases.settled_versions(client, name)
    version = client.create_model_version(
        name,
        f"models:/{model_id}",
        run_id=card.mlflow_run_id,
        tags=tags,
        description=describe(card, name, train, uri),
        model_id=model_id,
    )
    number = str(version.version)
    if verification is not None and card.top1 is not None:
        register_aliases.promote(client, name, number, settled)
    else:
        client.set_model_version_tag(name, number, register_aliases.STATE_TAG, register_aliases.SETTLED)
    return version


def _verify(model_uri: str, uri: str, train: dict, card: ModelCard) -> "Verification | None":
    """The verification, or None where the validation images cannot be reached (and the champion stays)."""
    from pipeline.register.verify import sample_images, verify
    from sharding import ShardingError

    try:
        digest, images = sample_images(train)
    except (ShardingError, OSError) as error:
        print(f"{card.name} was not verified, so the champion stays: {one_line(error)}", file=sys.stderr)
        return None
    if card.validation_digest is not None and digest != card.validation_digest:
        print(
            f"{card.name} was not verified, so the champion stays: the validation shards are not those it was "
            f"evaluated on (digest {digest[:12]}, not {card.validation_digest[:12]})",
            file=sys.stderr,
        )
        return None
    return verify(model_uri, uri, card, images)


def version_tags(card: ModelCard) -> dict[str, str]:
    """What the registry shows of a version and can be searched by; unknown values are left out."""
    tags = {
        "top1": card.top1,
        "top5": card.top5,
        "validation_samples": card.validation_samples or None,
        "validation_digest": card.validation_digest,
        "train_digest": card.train_digest,
        "git_commit": card.git_commit,
        "mlflow_run_id": card.mlflow_run_id,
        "step": card.step,
        "epoch": f"{card.epoch:g}",
        "image_size": card.image_size,
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def register_or_say_how(run_dir: Path) -> None:
    """Register the exported weights; where the registry does not take them, say how to do it later."""
    try:
        version = register(run_dir)
        say(f"registered {version.uri} with the aliases {', '.join(version.aliases)}")
    except Exception as error:  # the training is done and exported: nothing that MLflow raises may undo that
        say(f"warning: the model is trained but not registered: {one_line(error)}")
        say(f"register it with: python -m pipeline.register {run_dir}")
