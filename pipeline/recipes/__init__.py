"""Named trainings: `RECIPES` holds each by the name that `--recipe` takes."""

from typing import TYPE_CHECKING, Literal

from jobs import Resources
from pipeline.recipes import digits, imagenet
from pipeline.recipes.recipe import ClusterChoice, OwnData, Recipe

__all__ = ["RECIPES", "ClusterChoice", "OwnData", "Recipe", "RecipeName"]

RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        train=digits.demo, resources=Resources(tasks_per_node=2), cluster="local", own_data=digits.HANDWRITTEN_DIGITS
    ),
    "tiny": Recipe(train=imagenet.tiny, published=imagenet.TINY),
    "small": Recipe(train=imagenet.small, published=imagenet.SMALL),
    "base": Recipe(train=imagenet.base, published=imagenet.BASE),
    "base_384": Recipe(train=imagenet.base_384, published=imagenet.BASE_384),
}

if TYPE_CHECKING:
    RecipeName = str
else:
    RecipeName = Literal[tuple(RECIPES)]
    """Values of `--recipe`, which `--help` lists."""
