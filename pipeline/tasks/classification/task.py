"""Classification as a task."""

from pipeline.tasks.metric import Score, Scores


class Classification:
    """One label for each image."""

    name = "classification"
    scores = Scores(
        (
            Score(name="top1", label="top-1"),
            Score(name="top5", label="top-5"),
            Score(name="loss", label="loss", higher_is_better=False, is_share=False),
        )
    )
    answer = "class_name, wnid, probability, top5"
