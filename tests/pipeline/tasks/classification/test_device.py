"""What the device does to a batch, against timm's classes and by its own distribution."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

from pipeline.config.schema import AugmentConfig, MixConfig
from pipeline.order.samples import mixing_groups
from pipeline.tasks.batch import Batch
from pipeline.tasks.classification.device import DeviceTransform, draw_erasing, draw_flips
from pipeline.tasks.classification.mixup import draw_mixing
from pipeline.tasks.normalise import Normalise
from tests.benchmarks.fidelity import noise_shares, our_batches, steps_of_one_kind, upstream_batches

SIZE, CLASSES = 32, 7
PLAIN = AugmentConfig(horizontal_flip=0.0, random_erasing=0.0)
UNMIXED = MixConfig(mixup=0.0, cutmix=0.0, label_smoothing=0.0)


def batch(count: int = 8, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(count)
    return Batch(
        images=torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator).permute(
            0, 3, 1, 2
        ),
        labels=torch.randint(0, CLASSES, (count,), generator=generator),
        indices=torch.arange(count),
        epochs=torch.zeros(count, dtype=torch.int64),
        substitutes=torch.full((count,), -1),
        groups=torch.zeros(count, dtype=torch.int64),
        step=step,
        micro_step=0,
    )


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PLAIN.mean, PLAIN.std))
    return (images.float() / 255 - mean) / std


def test_without_augmentation_a_batch_is_normalised():
    given = batch()
    images, targets = DeviceTransform(PLAIN, UNMIXED, CLASSES, 0)(given, "cpu")
    assert images.is_contiguous()
    torch.testing.assert_close(images, normalised(given.images))
    assert (targets == torch.nn.functional.one_hot(given.labels, CLASSES)).all()
    evaluated = Normalise(PLAIN)(given.images, torch.device("cpu"))
    torch.testing.assert_close(evaluated, normalised(given.images))


@pytest.mark.parametrize(
    "config", [MixConfig(cutmix=0.0), MixConfig(mixup=0.0), MixConfig(), MixConfig(mixup=0, cutmix=0)]
)
def test_mixing_is_timms_for_the_same_draw(config):
    theirs = Mixup(config.mixup or 1.0, config.cutmix, label_smoothing=config.label_smoothing, num_classes=CLASSES)
    transform = DeviceTransform(PLAIN, config, CLASSES, 3)
    kinds = set()
    for step in range(12):
        given = batch(step=step)
        mixing = draw_mixing(3, step, 0, SIZE, SIZE, config)
        kinds.add("box" if mixing.box else "blend" if mixing.weight < 1 else "none")
        # timm is given the weight and the box, and does the rest.
        theirs._params_per_batch = lambda mixing=mixing: (mixing.weight, mixing.box is not None)
        with pytest.MonkeyPatch.context() as patch:
            if mixing.box is not None:
                top, left, bottom, right = mixing.box
                box = ((top, bottom, left, right), mixing.weight)
                patch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *args, box=box, **kwargs: box)
            images, targets = theirs(given.images.float(), given.labels.clone())
        ours_images, ours_targets = transform(given, "cpu")
        torch.testing.assert_close(ours_images, normalised(images.round()))
        torch.testing.assert_close(ours_targets, targets)
    expected = {(0.8, 0.0): {"blend"}, (0.0, 1.0): {"box"}, (0.8, 1.0): {"box", "blend"}, (0.0, 0.0): {"none"}}
    assert kinds == expected[config.mixup, config.cutmix]


def test_weights_and_boxes_are_distributed_as_timms():
    config, steps = MixConfig(), 4000
    ours = [draw_mixing(0, step, 0, SIZE, SIZE, config) for step in range(steps)]
    np.random.seed(0)
    theirs = Mixup(0.8, 1.0, num_classes=CLASSES)
    drawn = [theirs._params_per_batch() for _ in range(steps)]
    assert np.mean([mixing.box is not None for mixing in ours]) == pytest.approx(0.5, abs=0.03)
    levels = np.linspace(0.05, 0.95, 10)
    blends = [mixing.weight for mixing in ours if mixing.box is None]
    blended = np.quantile([weight for weight, cut in drawn if not cut], levels)
    assert np.abs(np.quantile(blends, levels) - blended).max() < 0.07
    from timm.data.mixup import cutmix_bbox_and_lam

    cuts = [mixing.weight for mixing in ours if mixing.box is not None]
    cut = [cutmix_bbox_and_lam((1, 3, SIZE, SIZE), weight)[1] for weight, is_cut in drawn if is_cut]
    assert np.abs(np.quantile(cuts, levels) - np.quantile(cut, levels)).max() < 0.07


def test_the_probability_of_mixing_is_kept():
    mixed = [draw_mixing(0, step, 0, SIZE, SIZE, MixConfig(probability=0.3)).weight < 1 for step in range(3000)]
    assert np.mean(mixed) == pytest.approx(0.3, abs=0.03)


def test_flips_reverse_the_columns_of_the_drawn_samples():
    config = AugmentConfig(random_erasing=0.0)
    given = batch(64)
    images, _ = DeviceTransform(config, UNMIXED, CLASSES, 5)(given, "cpu")
    flips = draw_flips(5, given.epochs.numpy(), given.indices.numpy(), 0.5)
    assert 16 < flips.sum() < 48
    expected = normalised(given.images)
    expected[torch.from_numpy(flips)] = expected[torch.from_numpy(flips)].flip(3)
    torch.testing.assert_close(images, expected)
    faithful = AugmentConfig(mode="faithful", random_erasing=0.0)  # timm has flipped already
    torch.testing.assert_close(
        DeviceTransform(faithful, UNMIXED, CLASSES, 5)(given, "cpu")[0], normalised(given.images)
    )


def test_erasing_puts_noise_into_its_rectangle_and_nowhere_else():
    config = AugmentConfig(horizontal_flip=0.0, random_erasing=0.6)
    given = batch(64)
    images, _ = DeviceTransform(config, UNMIXED, CLASSES, 5)(given, "cpu")
    plain, _ = DeviceTransform(PLAIN, UNMIXED, CLASSES, 5)(given, "cpu")
    boxes = draw_erasing(5, given.epochs.numpy(), given.indices.numpy(), (SIZE, SIZE), 0.6)
    noise = []
    for image, before, (top, left, tall, wide, _, _) in zip(images, plain, boxes, strict=True):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        inside[top : top + tall, left : left + wide] = True
        assert (image[:, ~inside] == before[:, ~inside]).all()
        assert (image[:, inside] != before[:, inside]).all()
        noise.append(image[:, inside].flatten())
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.05
    assert float(values.std()) == pytest.approx(1, abs=0.05)


def test_rectangles_are_distributed_as_timms():
    count, size = 4000, 64
    boxes = draw_erasing(0, np.zeros(count, np.int64), np.arange(count), (size, size), 0.25)
    erased = boxes[:, 2] > 0
    assert erased.mean() == pytest.approx(0.25, abs=0.02)
    eraser = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    areas, heights = [], []
    import random

    random.seed(0)
    for _ in range(1000):
        image = torch.zeros(1, size, size)
        eraser(image)
        rows, columns = torch.nonzero(image[0], as_tuple=True)
        if len(rows):
            heights.append(int(rows.max() - rows.min()) + 1)
            areas.append(heights[-1] * (int(columns.max() - columns.min()) + 1))
    levels = np.linspace(0.1, 0.9, 9)
    ours = boxes[erased]
    assert np.abs(np.quantile(ours[:, 2] * ours[:, 3], levels) - np.quantile(areas, levels)).max() < 0.04 * size**2
    assert np.abs(np.quantile(ours[:, 2], levels) - np.quantile(heights, levels)).max() < 0.08 * size
    assert (ours[:, 0] + ours[:, 2] <= size).all()
    assert (ours[:, 1] + ours[:, 3] <= size).all()


def test_draws_of_a_sample_do_not_depend_on_its_neighbours():
    rows, epochs = np.arange(50), np.full(50, 3)
    whole = draw_erasing(9, epochs, rows, (SIZE, SIZE), 0.5)
    alone = np.concatenate([draw_erasing(9, epochs[i : i + 1], rows[i : i + 1], (SIZE, SIZE), 0.5) for i in range(50)])
    assert (whole == alone).all()
    assert (draw_erasing(9, epochs + 1, rows, (SIZE, SIZE), 0.5) != whole).any()


@pytest.mark.gpu
def test_the_device_makes_no_difference():
    config, given = AugmentConfig(), batch(64)
    here = DeviceTransform(config, MixConfig(), CLASSES, 5)(given, "cpu")
    there = DeviceTransform(config, MixConfig(), CLASSES, 5)(given, "cuda")
    for ours, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(ours, theirs.cpu())


def test_images_are_mixed_first_and_then_erased_as_by_timms_prefetcher():
    images, pixels, square = noise_shares(our_batches(batches=12, side=48))
    their_images, their_pixels, their_square = noise_shares(upstream_batches(batches=12, side=48))
    # Erasing before mixing gives 41 % of images, 7 % of pixels and a mean square of 0.6.
    assert images == pytest.approx(their_images, abs=0.04)
    assert images == pytest.approx(0.24, abs=0.03)
    assert pixels == pytest.approx(their_pixels, abs=0.008)
    assert square == pytest.approx(1.0, abs=0.02)
    assert their_square == pytest.approx(1.0, abs=0.02)


def test_each_group_of_a_step_is_mixed_by_a_draw_of_its_own():
    assert steps_of_one_kind(steps=400) == pytest.approx(2 * 0.5**8, abs=0.02)
    given, config = batch(8), MixConfig()
    groups = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    images, targets = DeviceTransform(PLAIN, config, CLASSES, 3)(replace(given, groups=groups), "cpu")
    for group in (0, 1):
        rows = torch.nonzero(groups == group)[:, 0]
        alone = Batch(
            **{name: getattr(given, name)[rows] for name in ("images", "labels", "indices", "epochs", "substitutes")},
            groups=groups[rows],
            step=given.step,
            micro_step=0,
        )
        its_images, its_targets = DeviceTransform(PLAIN, config, CLASSES, 3)(alone, "cpu")
        assert (images[rows] == its_images).all()
        assert (targets[rows] == its_targets).all()


@pytest.mark.parametrize("global_batch", [64, 128, 384, 1024])
def test_a_micro_batch_lies_within_one_group_on_any_number_of_ranks(global_batch):
    micro = 32
    whole = mixing_groups(global_batch, 128)
    assert len(np.unique(whole)) == max(1, global_batch // 128)
    for world_size in (1, 2):
        for rank in range(world_size):
            mine = mixing_groups(global_batch, 128, rank, world_size)
            assert (mine == whole[rank::world_size]).all()
            count = global_batch // (micro * world_size)
            assert all(len(np.unique(mine[part::count])) == 1 for part in range(count))
