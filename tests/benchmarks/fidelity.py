"""How often a batch of the recipe holds noise, and how it is mixed, beside timm's own collate function and prefetcher.

`python -m tests.benchmarks.fidelity`: plain images of one colour go through both, so that every pixel that differs from
that colour is noise. The table goes into `RESULTS_fidelity.md`.
"""

import random
from collections.abc import Iterable

import numpy as np
import torch
from timm.data.mixup import FastCollateMixup
from timm.data.random_erasing import RandomErasing

from pipeline.config.schema import AugmentConfig, MixConfig
from pipeline.order.samples import mixing_groups
from pipeline.tasks.batch import Batch
from pipeline.tasks.classification.device import DeviceTransform
from pipeline.tasks.classification.mixup import draw_mixing

SIDE, BATCH, BATCHES, COLOUR, CLASSES = 224, 128, 32, 100, 10
GLOBAL_BATCH, STEPS = 1024, 2000


def noise_shares(batches: Iterable[torch.Tensor]) -> tuple[float, float, float]:
    """Share of images that hold noise, share of pixels that are noise, and the mean square of that noise.

    Args:
        batches: normalised images [N, 3, H, W].
    """
    augment = AugmentConfig()
    plain = ((COLOUR / 255 - torch.tensor(augment.mean)) / torch.tensor(augment.std)).view(1, 3, 1, 1)
    images = pixels = noisy_images = noisy_pixels = 0
    squares = 0.0
    for batch in batches:
        noise = ((batch - plain).abs() > 1e-5).all(1)
        noisy_images += int(noise.flatten(1).any(1).sum())
        noisy_pixels += int(noise.sum())
        squares += float((batch.permute(0, 2, 3, 1)[noise] ** 2).sum())
        images, pixels = images + len(batch), pixels + noise.numel()
    return noisy_images / images, noisy_pixels / pixels, squares / (3 * noisy_pixels)


def our_batches(batches: int = BATCHES, side: int = SIDE) -> Iterable[torch.Tensor]:
    """Yield plain batches through `DeviceTransform`."""
    transform = DeviceTransform(AugmentConfig(), MixConfig(), CLASSES, 0)
    zeros = torch.zeros(BATCH, dtype=torch.int64)
    for step in range(batches):
        rows = torch.arange(BATCH) + BATCH * step
        pixels = torch.full((BATCH, side, side, 3), COLOUR, dtype=torch.uint8).permute(0, 3, 1, 2)
        batch = Batch(pixels, zeros, rows, zeros, zeros - 1, zeros, step=step, micro_step=0)
        yield transform(batch, "cpu")[0]


def upstream_batches(batches: int = BATCHES, side: int = SIDE) -> Iterable[torch.Tensor]:
    """Yield plain batches through timm's collate function, and through what its prefetcher does on the device."""
    random.seed(0)
    np.random.seed(0)
    augment, mix = AugmentConfig(), MixConfig()
    collate = FastCollateMixup(mix.mixup, mix.cutmix, label_smoothing=mix.label_smoothing, num_classes=CLASSES)
    erase = RandomErasing(augment.random_erasing, mode="pixel", device="cpu")
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (augment.mean, augment.std))
    sample = (np.full((3, side, side), COLOUR, np.uint8), 0)
    for _ in range(batches):
        images, _ = collate([sample] * BATCH)
        yield erase((images.float() - mean) / std)


def steps_of_one_kind(steps: int = STEPS) -> float:
    """Share of steps whose groups are all mixed by Mixup, or all by CutMix."""
    groups = np.unique(mixing_groups(GLOBAL_BATCH, MixConfig().group_size)).tolist()
    kinds = [{draw_mixing(0, s, g, SIDE, SIDE, MixConfig()).box is None for g in groups} for s in range(steps)]
    return float(np.mean([len(kind) == 1 for kind in kinds]))


def main() -> None:
    """Print the table."""
    print("| | images with noise | pixels of noise | mean square of the noise |")
    print("|---|---|---|---|")
    for name, batches in (("timm's collate function and prefetcher", upstream_batches()), ("ours", our_batches())):
        images, pixels, square = noise_shares(batches)
        print(f"| {name} | {100 * images:.1f} % | {100 * pixels:.2f} % | {square:.2f} |")
    print(f"\nsteps of {GLOBAL_BATCH} images that are all Mixup or all CutMix: {100 * steps_of_one_kind():.2f} %")


if __name__ == "__main__":
    main()
