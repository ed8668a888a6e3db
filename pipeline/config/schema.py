"""Everything a training is decided by: frozen dataclasses, checked at the door, written to `RUN_DIR/config.json`.

No torch here: the launcher parses, checks and prints these before anything heavy is imported.
"""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.common.errors import PipelineError

ZeroStage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16", "fp16"]
ModelName = Literal["transxnet_n", "transxnet_t", "transxnet_s", "transxnet_b"]


class ConfigError(PipelineError, ValueError):
    """A value that cannot work, said with the value and with what would work."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network is built (`transxnet.build`)."""

    name: ModelName = "transxnet_t"
    """Variant; transxnet_n is ours, for tests and the demo."""
    image_size: int = 224
    """Side of the square input, in pixels."""
    drop_path_rate: float | None = None
    """Stochastic depth of the last block; None takes the paper's value for the variant."""
    backend: Literal["auto", "reference", "triton"] = "auto"
    """Implementation of the operators; the weights are the same in each."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples lie and how they are read."""

    shards: str = "shards"
    """Folder or URI with the training split's manifest (`python -m sharding.build`)."""
    validation_shards: str | None = None
    """Folder or URI with the validation split's manifest; None: the same as `shards`."""
    train_split: str = "train"
    """Name of the split that is trained on."""
    validation_split: str = "validation"
    """Name of the split that is evaluated on."""
    workers: int = 4
    """Loader processes of each rank; 0 loads in the rank itself."""
    prefetch_batches: int = 8
    """Micro-batches the workers of a rank prepare ahead, together."""
    lanes: int = 64
    """Lanes the epoch's shards are dealt onto (the sample order depends on it)."""
    block_shards: int = 4
    """Shards whose samples are shuffled together within a lane (the sample order depends on it)."""
    on_damage: Literal["stop", "replace"] = "stop"
    """A sample whose digest does not hold: stop, or put another in its place, counted and logged."""
    max_replacements: int = 100
    """With `on_damage replace`: the run stops when a rank has replaced more than this in one attempt."""
    cache_dir: str | None = None
    """Local folder where remote shards are kept; None: `transxnet-shards-UID` below the temporary folder."""
    cache_gb: float = 200.0
    """Bound of that cache, in 10^9 bytes."""

    @property
    def validation_location(self) -> str:
        """Folder or URI with the validation split's manifest."""
        return self.validation_shards or self.shards


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """From encoded image to normalised pixels. The defaults are upstream's (timm's) training recipe."""

    mode: Literal["fast", "faithful"] = "fast"
    """`faithful` runs timm's own transforms; `fast` draws from the same distribution several times quicker."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area a training crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of a training crop before it is made square."""
    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """Resampling of training crops; `random` draws bilinear or bicubic per image."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment description; None: no RandAugment."""
    random_erasing: float = 0.25
    """Probability that a rectangle is replaced by pixel noise."""
    evaluation_crop: float = 0.9
    """Share of the shorter side that the evaluation's centre crop keeps (timm's crop_pct)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per-channel mean that is subtracted, of pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Per-channel deviation that is divided by, of pixels in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup, cutmix and label smoothing, as timm's `Mixup` does them on a batch."""

    mixup: float = 0.8
    """Alpha of mixup's Beta distribution; 0: no mixup."""
    cutmix: float = 1.0
    """Alpha of cutmix's Beta distribution; 0: no cutmix."""
    switch: float = 0.5
    """Probability of cutmix where both are on."""
    probability: float = 1.0
    """Probability that a batch is mixed at all."""
    label_smoothing: float = 0.1
    """Mass of the target spread over all classes."""
    group_size: int = 128
    """Images of a step that share one draw of the mixing: upstream's batch of one GPU, which is mixed by itself."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with timm's decay groups: no decay on 1-D tensors and biases."""

    lr: float = 2e-3
    """Peak learning rate at the recipe's global batch size; it is not scaled with it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    layer_decay: float = 1.0
    """Layer-wise decay of the learning rate, from the classifier down to the stem: 0.65 to 0.9 in fine-tuning."""
    clip_grad_norm: float | None = None
    """Bound of the global gradient norm; None: no clipping."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, cosine, constant cooldown."""

    per: Literal["step", "epoch"] = "step"
    """How often the learning rate changes; upstream's scripts change it once an epoch."""

    warmup_epochs: float = 5.0
    """Epochs from `warmup_lr` to the peak."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Where the cosine ends and the cooldown stays."""
    cooldown_epochs: float = 10.0
    """Epochs at `min_lr` after the `epochs` of the cosine."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training, wherever it runs. Counts are of optimizer steps and of samples."""

    seed: int = 0
    """Seed of the weights, the sample order, the augmentation and the mixing."""
    epochs: float = 300.0
    """Passes over the training split before the cooldown."""
    steps: int | None = None
    """Optimizer steps in all, instead of epochs; the schedule is fitted to it."""
    global_batch_size: int = 1024
    """Samples of one optimizer step over all ranks."""
    micro_batch_size: int | None = None
    """Samples of one forward of one rank; None: global_batch_size / world_size, at most 128."""
    zero_stage: ZeroStage = 1
    """What DeepSpeed ZeRO partitions: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: Precision = "bf16"
    """Arithmetic of the forward and backward (autocast); the weights stay fp32."""
    batch_norm: Literal["sync", "local"] = "sync"
    """Statistics over all ranks, or of each rank's own micro-batch (what a CPU always does)."""
    ema_decay: float = 0.9998
    """Decay of the moving average of the weights; 0: none."""
    compile: bool = False
    """Run the model through `torch.compile`."""
    cuda_graphs: bool = False
    """Record forward and backward once as CUDA graphs and replay them: few launches. No GPU has run this yet."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward instead of keeping what is within: less memory, a third more work."""
    save_every_steps: int = 500
    """Interval of checkpoints; what a kill can cost at most."""
    keep_checkpoints: int = 3
    """Newest checkpoints that stay; the best by top-1 stays besides."""
    eval_every_steps: int | None = None
    """Interval of evaluations; None: once an epoch. The end is always evaluated."""
    log_every_steps: int = 50
    """Interval of the lines in the log (`metrics.jsonl` holds every step)."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop, or go back to the last checkpoint and skip the batch."""
    max_skipped_batches: int = 3
    """With `on_non_finite skip`: the run stops after this many."""
    collective_timeout_s: float = 600.0
    """How long a rank waits for the others before the attempt ends, naming those that hang."""
    audit_samples: bool = False
    """Write who read which sample to `RUN_DIR/audit/`."""
    initialise_from: str | None = None
    """Weights to start a new run from: a run directory, a `models:/` URI, a .safetensors or published .pth file."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def micro_batch(self, world_size: int) -> int:
        """Samples of one forward of one rank: as configured, or the largest up to 128 that divides the share."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        share = max(1, self.global_batch_size // world_size)
        return max(m for m in range(1, min(share, 128) + 1) if share % m == 0)

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Micro-batches of one optimizer step on each rank."""
        return self.global_batch_size // (self.micro_batch(world_size) * world_size)
