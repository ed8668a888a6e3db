"""timm's RandAugment: which operations an image gets, and how strong. Drawn for each image by itself.

The description (`rand-m9-mstd0.5-inc1`) is timm's: magnitude m, its deviation mstd, n operations, each with
probability p, the magnitude's bound mmax, and whether all operations grow stronger with it (inc). Source of the
policy: timm 1.0.31, `timm/data/auto_augment.py`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from pipeline.augment import operations as ops
from pipeline.augment.decode import Pixels
from pipeline.config.schema import ConfigError

DRAWS_PER_LAYER = 6
"""Uniform numbers that one operation takes: which, whether, two for its magnitude, its sign, its resampling."""
_DENOMINATOR = 10.0


class PolicyError(ConfigError):
    """A description of RandAugment that cannot be read."""


@dataclass(frozen=True)
class Choice:
    """One of the operations that are drawn from.

    Attributes:
        name: timm's.
        operation: on pixels.
        argument: of the operation, from the level in [0, 1] and a sign.
    """

    name: str
    operation: ops.Operation
    argument: Callable[[float, int], float]


def _enhance(level: float, sign: int) -> float:
    return level * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * level * 0.9)


_COMMON = (
    Choice("AutoContrast", ops.auto_contrast, lambda level, sign: 0.0),
    Choice("Equalize", ops.equalize, lambda level, sign: 0.0),
    Choice("Invert", ops.invert, lambda level, sign: 0.0),
    Choice("Rotate", ops.rotate, lambda level, sign: sign * level * 30.0),
    Choice("SolarizeAdd", ops.solarize_add, lambda level, sign: min(128, int(level * 110))),
    Choice("ShearX", ops.shear_x, lambda level, sign: sign * level * 0.3),
    Choice("ShearY", ops.shear_y, lambda level, sign: sign * level * 0.3),
    Choice("TranslateXRel", ops.translate_x, lambda level, sign: sign * level * 0.45),
    Choice("TranslateYRel", ops.translate_y, lambda level, sign: sign * level * 0.45),
)
CHOICES = (
    *_COMMON,
    Choice("Posterize", ops.posterize, lambda level, sign: int(level * 4)),
    Choice("Solarize", ops.solarize, lambda level, sign: min(256, int(level * 256))),
    Choice("Color", ops.color, _enhance),
    Choice("Contrast", ops.contrast, _enhance),
    Choice("Brightness", ops.brightness, _enhance),
    Choice("Sharpness", ops.sharpness, _enhance),
)
INCREASING_CHOICES = (
    *_COMMON,
    Choice("PosterizeIncreasing", ops.posterize, lambda level, sign: 4 - int(level * 4)),
    Choice("SolarizeIncreasing", ops.solarize, lambda level, sign: 256 - min(256, int(level * 256))),
    Choice("ColorIncreasing", ops.color, _enhance_increasing),
    Choice("ContrastIncreasing", ops.contrast, _enhance_increasing),
    Choice("BrightnessIncreasing", ops.brightness, _enhance_increasing),
    Choice("SharpnessIncreasing", ops.sharpness, _enhance_increasing),
)


@dataclass(frozen=True)
class RandAugment:
    """The policy of a description.

    Attributes:
        magnitude: mean strength, of 10.
        deviation: of the strength; infinite: uniform between 0 and `magnitude`.
        layers: operations an image gets.
        probability: that each of them is applied.
        bound: highest strength.
        choices: what is drawn from, with replacement.
    """

    magnitude: float = 10.0
    deviation: float = 0.0
    layers: int = 2
    probability: float = 0.5
    bound: float = 10.0
    choices: tuple[Choice, ...] = CHOICES

    @classmethod
    def parse(cls, description: str) -> Self:
        """Read timm's description.

        Raises:
            PolicyError: it is not one, or asks for what is not built here (timm's `t` sets of transforms).
        """
        head, *parts = description.split("-")
        values: dict[str, float] = {}
        for part in parts:
            match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)", part)
            if match is None:
                break
            values[match[1]] = float(match[2])
        if head != "rand" or len(values) != len(parts):
            raise PolicyError(
                f"rand_augment {description!r} is not understood: it is rand-mM-mstdS-incI, with M of 0 to 10, "
                "and optionally -nN, -pP and -mmaxB, such as rand-m9-mstd0.5-inc1"
            )
        deviation = values.get("mstd", 0.0)
        return cls(
            magnitude=values.get("m", 10.0),
            deviation=deviation if deviation <= 100 else math.inf,
            layers=int(values.get("n", 2)),
            probability=values.get("p", 0.5),
            bound=values.get("mmax", _DENOMINATOR),
            choices=INCREASING_CHOICES if values.get("inc") else CHOICES,
        )

    @property
    def draws(self) -> int:
        """Uniform numbers that an image takes."""
        return self.layers * DRAWS_PER_LAYER

    def __call__(
        self, pixels: Pixels, uniforms: Sequence[float], fill: tuple[int, int, int], cubic: bool | None
    ) -> Pixels:
        """Augment one image.

        Args:
            pixels: uint8 [H, W, 3]; may be returned, never written.
            uniforms: `draws` numbers of U[0, 1).
            fill: colour of what comes from outside the image.
            cubic: resampling of geometric operations; None draws it for each.

        Returns:
            uint8 [H, W, 3].
        """
        for layer in range(self.layers):
            u = uniforms[layer * DRAWS_PER_LAYER : (layer + 1) * DRAWS_PER_LAYER]
            if u[1] >= self.probability:
                continue
            choice = self.choices[int(u[0] * len(self.choices))]
            argument = choice.argument(self.strength(u[2], u[3]) / _DENOMINATOR, 1 if u[4] < 0.5 else -1)
            bicubic = u[5] < 0.5 if cubic is None else cubic
            pixels = choice.operation(pixels, argument, ops.Resampling(bicubic, fill))
        return pixels

    def strength(self, first: float, second: float) -> float:
        """Strength of an operation, of 10, from two uniform numbers."""
        if math.isinf(self.deviation):
            drawn = first * self.magnitude
        else:
            normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            drawn = self.magnitude + self.deviation * normal
        return max(0.0, min(drawn, self.bound))
