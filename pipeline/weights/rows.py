"""What a page about a model says of it: labels and values of a table."""

from pipeline.weights.card import ModelCard


def result_rows(card: ModelCard) -> dict[str, str]:
    """Return the scores on the validation split, and what the model takes and tells apart."""
    return {
        **{score.label: _percent(card.scores.get(score.name)) for score in card.of_task.scores.shares},
        **({"validation images": f"{card.validation_samples:,}"} if card.validation_samples else {}),
        "input": card.of_task.served.describe_input(card.image_size, card.preprocessing),
        "classes": f"{card.num_classes:,}",
    }


def origin_rows(card: ModelCard) -> dict[str, str]:
    """Return the run, code and data that the weights come from."""
    return {
        "run": card.mlflow_run_id or "unknown",
        "code": card.git_commit or "unknown",
        "training data": _digest(card.train_digest),
        "validation data": _digest(card.validation_digest),
    }


def _digest(value: str | None) -> str:
    return "unknown" if value is None else f"shards with the digest {value[:16]}"


def _percent(value: float | None) -> str:
    return "not evaluated" if value is None else f"{100 * value:.2f} %"
