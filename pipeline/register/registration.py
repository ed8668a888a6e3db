"""From the weights of a run to a verified version in the MLflow registry, and to the aliases that point to it."""

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.atomic import file_sha256, write_json
from pipeline.common.errors import PipelineError, one_line
from pipeline.common.secrets import mask_secrets
from pipeline.register import champion
from pipeline.register.best import best_weights
from pipeline.register.names import check_alias, check_name
from pipeline.run.config import RunConfig, read_config
from pipeline.run.files import REGISTERED_NAME, durable_step
from pipeline.run.notify import notify
from pipeline.run.recorder import log
from pipeline.tasks import Metric
from pipeline.tracking.address import registry_uri
from pipeline.tracking.client import TrackingError, describe_failure, mlflow_session, refuse_deleted_run
from pipeline.tracking.settle import settle_after_contact
from pipeline.tracking.state import load_state, shipping_lock, tracking_uri_of
from pipeline.weights.card import WEIGHTS_NAME, ModelCard

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.register.verify import Verification


WEIGHTS_TAG = "weights_sha256"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A model version in the registry, as `RUN_DIR/registered.json` holds it."""

    name: str
    """Registered model: the name that was asked for, else the network's, such as `transxnet_t`."""
    version: str
    """Number of the version."""
    aliases: tuple[str, ...]
    """All aliases of the version, `latest` among them (MLflow gives it to the highest number)."""
    uri: str
    """Address that `mlflow.pyfunc.load_model` takes."""
    step: int
    """Optimizer steps that the weights have seen: the last step of the training, or its best."""
    metric: Metric | None
    """Primary metric of the weights on the validation split; None: not evaluated."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file: the fields, the metric, and its value by its name."""
        fields = dataclasses.asdict(self) | {"metric": None}
        return fields if self.metric is None else fields | self.metric.stored() | {self.metric.name: self.metric.value}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """Weights that are to become a version."""

    run_dir: Path
    config: RunConfig
    weights: Path
    """Folder with `model.safetensors`."""
    sha256: str
    """SHA-256 of that file, in hexadecimal."""
    card: ModelCard
    name: str
    """Registered model."""
    tracking_uri: str


def register(run_dir: str | os.PathLike[str], alias: str | None = None, name: str | None = None) -> RegisteredVersion:
    """Make the best averaged weights of a run a version of the registered model, proven to load and predict.

    A version is created only after the model was loaded in a clean process and reached its recorded metric on a sample
    of the validation split. `champion` then moves to it if its metric is better on the same validation data. If the
    same weights of the run are registered already, their version is returned.

    Args:
        run_dir: directory of a run that has ended, with `export/`.
        alias: another alias to point to the version.
        name: registered model; None: the name given at the launch, else the network's.

    Raises:
        TrackingError: the registry does not answer, or the model is not as good as recorded.
        ModelCardError: the run exported nothing.
        PipelineError: `run_dir` is no run, or MLflow does not accept the name or alias.
    """
    if name is not None:
        check_name(name)
    if alias is not None:
        check_alias(alias)
    folder = Path(run_dir).resolve()
    config = read_config(folder)
    weights, card = best_weights(folder)
    uri = tracking_uri_of(folder)
    try:
        with mlflow_session(uri) as client:
            candidate = _Candidate(
                run_dir=folder,
                config=config,
                weights=weights,
                sha256=file_sha256(weights / WEIGHTS_NAME),
                card=dataclasses.replace(card, mlflow_run_id=card.mlflow_run_id or _mlflow_run_id(folder)),
                name=name or config.registry_name,
                tracking_uri=uri,
            )
            assert candidate.card.mlflow_run_id is not None
            refuse_deleted_run(client, uri, candidate.card.mlflow_run_id)
            known = _find_version(client, candidate)
            number = known or _add_version(client, candidate)
            if alias is not None and alias.lower() != champion.LATEST:
                client.set_registered_model_alias(candidate.name, alias, number)
            aliases = _aliases(client, candidate.name, number)
    except PipelineError:
        raise
    except Exception as error:
        raise TrackingError(describe_failure(error, f"the registry at {registry_uri() or uri} failed")) from error
    pointer = f"@{champion.CHAMPION}" if champion.CHAMPION in aliases else f"/{number}"
    version = RegisteredVersion(
        name=candidate.name,
        version=number,
        aliases=aliases,
        uri=f"models:/{candidate.name}{pointer}",
        step=card.step,
        metric=card.metric,
    )
    write_json(folder / REGISTERED_NAME, version.to_dict())
    settle_after_contact(folder)
    if known is None and champion.CHAMPION in aliases:
        notify(folder, "champion")
    return version


def register_or_explain(run_dir: Path) -> None:
    """Register the exported weights; if that fails, log why, and the command that registers them later."""
    try:
        version = register(run_dir)
        log(f"registered {version.uri} with the aliases {', '.join(version.aliases)}")
    except Exception as error:  # the training is done and exported: no error of MLflow may make it fail
        log(f"warning: the model is trained but not registered: {one_line(error)}")
        log(f"register it with: python -m pipeline.register {run_dir}")


def _mlflow_run_id(run_dir: Path) -> str:
    """Return the id of the run's MLflow run; create that run if the server has not answered before."""
    state = load_state(run_dir)
    if state is None or state.run_id is None:
        from pipeline.tracking.shipper import Shipper

        with shipping_lock(run_dir, wait=False) as is_free:
            if not is_free:
                raise TrackingError(
                    f"the MLflow run of {run_dir} does not exist yet: register it when the training has ended"
                )
            shipper = Shipper(run_dir)
            shipper.ship(durable_step(run_dir))
            state = shipper.state
    if state.run_id is None:
        raise TrackingError(f"{run_dir} has no MLflow run")
    return state.run_id


def _find_version(client: "MlflowClient", candidate: _Candidate) -> str | None:
    """Return the number of the version with the same weights of the same run, if its registration was completed."""
    for number, version in champion.all_versions(client, candidate.name).items():
        tags = version.tags
        is_same = tags.get(WEIGHTS_TAG) == candidate.sha256 and version.run_id == candidate.card.mlflow_run_id
        if is_same and tags.get(champion.STATE_TAG) == champion.SETTLED:
            return number
    return None


def _add_version(client: "MlflowClient", candidate: _Candidate) -> str:
    """Log the model, verify it, create its version and apply the rule of the champion; return the version's number."""
    from pipeline.register.mlflow_model import log_model

    name, card = candidate.name, candidate.card
    model_id = log_model(client, candidate.run_dir, candidate.weights, card)
    verification = _verify(f"models:/{model_id}", candidate)
    client.finalize_logged_model(model_id, "READY")
    _ensure_registered_model(client, candidate)
    settled = champion.settled_versions(client, name)
    number = _create_version(client, candidate, model_id, verification)
    if verification is not None and card.metric is not None:
        champion.promote(client, name, number, settled)
    else:
        client.set_model_version_tag(name, number, champion.STATE_TAG, champion.SETTLED)
    return number


def _verify(model_uri: str, candidate: _Candidate) -> "Verification | None":
    """Verify the model; return None, after a warning, if its validation images are missing or not the same."""
    from pipeline.register.verify import sample_images, verify
    from sharding import ShardingError

    card = candidate.card
    try:
        digest, images = sample_images(*candidate.config.validation_split, task=card.of_task)
    except (ShardingError, OSError) as error:
        _warn_not_verified(card, one_line(error))
        return None
    if card.validation_digest is not None and digest != card.validation_digest:
        _warn_not_verified(
            card,
            f"the validation shards are not those it was evaluated on (digest {digest[:12]}, not "
            f"{card.validation_digest[:12]})",
        )
        return None
    return verify(model_uri, candidate.tracking_uri, card, images)


def _warn_not_verified(card: ModelCard, reason: str) -> None:
    logger.warning("%s was not verified, so the champion stays: %s", card.name, reason)


def _ensure_registered_model(client: "MlflowClient", candidate: _Candidate) -> None:
    """Create the registered model that versions belong to, unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            candidate.name, description=f"TransXNet {candidate.card.of_task.served.kinds} ({candidate.card.name})."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_version(
    client: "MlflowClient", candidate: _Candidate, model_id: str, verification: "Verification | None"
) -> str:
    """Create a version from a logged model, with tags and description; return its number."""
    from pipeline.register.mlflow_model import describe

    name, card = candidate.name, candidate.card
    tags = {**version_tags(card), WEIGHTS_TAG: candidate.sha256, champion.STATE_TAG: champion.OPEN}
    sources = {
        "initialised_from": candidate.config.initialised_from,
        "distilled_from": candidate.config.distilled_from,
    }
    tags |= {name: mask_secrets(source) for name, source in sources.items() if source is not None}
    if verification is not None:
        tags["verified"] = (
            f"{_label(card)} {verification.share:.4f} on {verification.samples} images in a clean process"
        )
    version = client.create_model_version(
        name,
        f"models:/{model_id}",
        run_id=card.mlflow_run_id,
        tags=tags,
        description=describe(card, name, candidate.config, candidate.tracking_uri),
        model_id=model_id,
    )
    return str(version.version)


def _label(card: ModelCard) -> str:
    """Return the name of the score that the model was verified by."""
    return card.of_task.scores.label(card.of_task.served.score)


def _aliases(client: "MlflowClient", name: str, number: str) -> tuple[str, ...]:
    """Return the aliases of a version, `latest` first."""
    aliases = sorted(client.get_model_version(name, number).aliases)
    newest = str(client.get_model_version_by_alias(name, champion.LATEST).version)
    if newest == number:
        aliases = [champion.LATEST, *(alias for alias in aliases if alias != champion.LATEST)]
    return tuple(aliases)


def version_tags(card: ModelCard) -> dict[str, str]:
    """Return the tags that the registry shows of a version and can search by; unknown values are left out."""
    tags = {
        **card.scores,
        **({} if card.metric is None else card.metric.stored()),
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
