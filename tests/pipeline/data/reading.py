"""What the tests of the loader share: sizes of the shards, and a function that reads all batches of a rank."""

import hashlib

from pipeline.data.loader import build_evaluation_loader, build_train_loader

SHARDS = (17, 9, 23, 4, 30, 12, 5)
SAMPLES = sum(SHARDS)


def evaluation_loader(settings, *, world_size=1, rank=0):
    """The loader of the validation split that a training with these settings opens."""
    return build_evaluation_loader(
        settings.data, settings.augment, settings.model.image_size, world_size=world_size, rank=rank, device="cpu"
    )


def read(settings, *, world_size=1, rank=0, steps=(0, 4)):
    """All samples of a rank: {(step, row): (digest of pixels, label)}, and (step, micro-step, row) in order."""
    read, order = {}, []
    with build_train_loader(
        settings, world_size=world_size, rank=rank, start_step=steps[0], total_steps=steps[1], device="cpu"
    ) as loader:
        for batches in loader:
            for batch in batches:
                assert batch.images.shape[1:] == (3, 32, 32)
                for i, row in enumerate(batch.indices.tolist()):
                    pixels = batch.images[i].contiguous().numpy().tobytes()
                    digest = hashlib.sha256(pixels).hexdigest()
                    read[batch.step, row] = (digest, int(batch.labels[i]))
                    order.append((batch.step, batch.micro_step, row))
    return read, order
