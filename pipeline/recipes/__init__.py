"""Named trainings: `RECIPES` has each by the name that `--recipe` takes."""

from jobs import Resources
from pipeline.recipes import digits, imagenet
from pipeline.recipes.recipe import OwnData, Recipe

__all__ = ["RECIPES", "OwnData", "Recipe"]

RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        train=digits.demo, resources=Resources(tasks_per_node=2), cluster="local", own_data=digits.HANDWRITTEN_DIGITS
    ),
    "tiny": Recipe(train=imagenet.tiny),
    "small": Recipe(train=imagenet.small),
    "base": Recipe(train=imagenet.base),
    "base_384": Recipe(train=imagenet.base_384),
}
