"""timm's RandAugment: it draws for each image which operations are applied, and how strongly.

A policy is described as in timm, such as `rand-m9-mstd0.5-inc1`: magnitude m, its standard deviation mstd, number of
operations n, probability p of each, upper limit mmax of the magnitude, and whether every operation gets stronger with
the magnitude (inc). Source of the policy: timm 1.0.31, `timm/data/auto_augment.py`.
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
"""Uniform numbers for one operation: choice, whether it is applied, two for its strength, its sign, its resampling."""
_MAX_MAGNITUDE = 10.0
"""Magnitude that stands for the level 1 of an operation (timm's `_LEVEL_DENOM`)."""


class PolicyError(ConfigError):
    """A description of RandAugment that is not valid, or not supported."""


@dataclass(frozen=True)
class Choice:
    """An operation that RandAugment can draw.

    Attributes:
        name: timm's name of the operation.
        operation: function on pixels.
        argument: function from the level in [0, 1] and a sign, 1 or -1, to the argument of `operation`.
    """

    name: str
    operation: ops.Operation
    argument: Callable[[float, int], float]


def _enhance(level: float, sign: int) -> float:
    """Return timm's `_enhance_level_to_arg`: a factor of 0.1 to 1.9."""
    return level * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    """Return timm's `_enhance_increasing_level_to_arg`: a factor that differs the more from 1, the higher the level."""
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
    """A RandAugment policy.

    Attributes:
        magnitude: mean magnitude of the operations, from 0 to 10.
        deviation: standard deviation of the magnitude; infinity draws it uniformly from 0 to `magnitude`.
        layers: number of operations that are drawn for an image.
        probability: probability that a drawn operation is applied.
        bound: greatest magnitude.
        choices: operations to draw from, with replacement.
    """

    magnitude: float = 10.0
    deviation: float = 0.0
    layers: int = 2
    probability: float = 0.5
    bound: float = 10.0
    choices: tuple[Choice, ...] = CHOICES

    @classmethod
    def parse(cls, description: str) -> Self:
        """Build the policy that a description in timm's form stands for.

        Raises:
            PolicyError: the description is not valid, or asks for one of timm's `t` sets of operations.
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
            bound=values.get("mmax", _MAX_MAGNITUDE),
            choices=INCREASING_CHOICES if values.get("inc") else CHOICES,
        )

    @property
    def draws(self) -> int:
        """Number of uniform numbers that an image needs."""
        return self.layers * DRAWS_PER_LAYER

    def __call__(
        self, pixels: Pixels, uniforms: Sequence[float], fill: tuple[int, int, int], cubic: bool | None
    ) -> Pixels:
        """Augment one image.

        Args:
            pixels: uint8 [H, W, 3], RGB; never written, but returned if no operation is applied.
            uniforms: `draws` uniform numbers in [0, 1).
            fill: RGB colour for places outside the image.
            cubic: whether geometric operations interpolate bicubically; None draws bicubic or bilinear for each.

        Returns:
            uint8 [H, W, 3].
        """
        for layer in range(self.layers):
            u = uniforms[layer * DRAWS_PER_LAYER : (layer + 1) * DRAWS_PER_LAYER]
            if u[1] >= self.probability:
                continue
            choice = self.choices[int(u[0] * len(self.choices))]
            argument = choice.argument(self.strength(u[2], u[3]) / _MAX_MAGNITUDE, 1 if u[4] < 0.5 else -1)
            bicubic = u[5] < 0.5 if cubic is None else cubic
            pixels = choice.operation(pixels, argument, ops.Resampling(bicubic, fill))
        return pixels

    def strength(self, first: float, second: float) -> float:
        """Return the magnitude of an operation, from 0 to `bound`, that two uniform numbers stand for (Box-Muller)."""
        if math.isinf(self.deviation):
            drawn = first * self.magnitude
        else:
            normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            drawn = self.magnitude + self.deviation * normal
        return max(0.0, min(drawn, self.bound))
