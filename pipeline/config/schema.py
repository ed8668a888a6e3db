"""All fields of a training's configuration, as frozen dataclasses; `RUN_DIR/config.json` holds them.

The text below a field is its `--help`. No torch: the launcher reads, checks and prints these before it imports anything
heavy.
"""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.common.errors import PipelineError

ZeroStage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16", "fp16"]
LARGEST_MICRO_BATCH = 128
"""Micro-batch that is taken at most where none is given, or where one is found."""
AUTO = "auto"
"""Value of `micro_batch_size` with which the micro-batch is found at the run's first start."""
TaskName = Literal["classification", "segmentation", "detection"]
ModelName = Literal[
    "transxnet_n",
    "transxnet_t",
    "transxnet_s",
    "transxnet_b",
    "semantic_fpn_n",
    "semantic_fpn_t",
    "semantic_fpn_s",
    "semantic_fpn_b",
    "retinanet_n",
    "retinanet_t",
    "retinanet_s",
    "retinanet_b",
    "mask_rcnn_n",
    "mask_rcnn_t",
    "mask_rcnn_s",
    "mask_rcnn_b",
]


class ConfigError(PipelineError, ValueError):
    """A value that cannot work; the message names the field, the value, and what would work."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network (`transxnet.build`)."""

    name: ModelName = "transxnet_t"
    """Variant, of a network for the task; _n is not of the paper but a small one for tests and the demo."""
    image_size: int = 224
    """Side of the square input, in pixels; in a segmentation the side that the position tables are made for."""
    drop_path_rate: float | None = None
    """Drop path rate of the last block (stochastic depth); None: the paper's value for the variant."""
    backend: Literal["auto", "reference", "triton"] = "auto"
    """Implementation of the operators; all have the same weights."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data, and how they are read."""

    shards: str = "shards"
    """Folder or URI with the training split's manifest (`python -m sharding.build`)."""
    validation_shards: str | None = None
    """Folder or URI with the validation split's manifest; None: the same as `shards`."""
    name: str | None = None
    """Which data set, where a folder holds several (`sharding.build --name`); None: the only one."""
    train_split: str = "train"
    """Name of the split that is trained on."""
    validation_split: str = "validation"
    """Name of the split that is evaluated on."""
    workers: int = 4
    """Loader processes of each rank; 0 loads in the rank itself."""
    prefetch_batches: int = 8
    """Micro-batches that all workers of a rank together prepare ahead."""
    lanes: int = 64
    """Lanes that the shards of an epoch are divided into (the sample order depends on it)."""
    block_shards: int = 4
    """Shards whose samples are shuffled together within a lane (the sample order depends on it)."""
    on_damage: Literal["stop", "replace"] = "stop"
    """A damaged sample: stop, or replace it by another one, counted and logged."""
    max_replacements: int = 100
    """With `on_damage replace`: the run stops when a rank has replaced more samples than this in one attempt."""
    cache_dir: str | None = None
    """Local cache folder of remote shards; None: `transxnet-shards-UID` below the temporary folder."""
    cache_gb: float = 200.0
    """Limit of that cache, and of `stage`, in 10^9 bytes."""
    stage: str | None = None
    """Folder on the node's own disk to which shards of a slow shared folder are copied ahead of need, and which may
    begin with a variable of the node, such as `$TMPDIR`; None: shards in a folder are read in place."""

    @property
    def validation_location(self) -> str:
        """Folder or URI with the validation split's manifest."""
        return self.validation_shards or self.shards


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """From the encoded image to normalised pixels; the defaults are upstream's training recipe, which is timm's."""

    mode: Literal["fast", "faithful"] = "fast"
    """`faithful`: timm's own crop, flip and RandAugment, its pixels for a seed bit for bit. `fast`: drawn from the
    same distributions, several times as fast; each operation is within a grey level of Pillow's on average."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a training crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a training crop, before it is resized to a square."""
    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """Resampling of training crops; `random` draws bilinear or bicubic for each image."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation; None: no RandAugment."""
    random_erasing: float = 0.25
    """Probability that a rectangle is replaced by pixel noise."""
    evaluation_crop: float = 0.9
    """Share of the shorter side that the evaluation's centre crop keeps (timm's crop_pct)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel that is subtracted from pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel by which pixels in [0, 1] are divided."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Crops and sizes of a segmentation, whose flip, mean and deviation are those of `augment`."""

    crop_size: int = 512
    """Side of the square training crops, in pixels."""
    scale: tuple[int, int] = (2048, 512)
    """Longest and shortest side that an image is resized to fit into, its ratio kept, for training and evaluation."""
    scale_ratio: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor of `scale` in training; one is drawn for each image."""
    cat_max_ratio: float = 0.75
    """Share of one class's pixels above which a crop is drawn again, up to ten times."""
    photometric_distortion: bool = True
    """Whether brightness, contrast, saturation and hue of a training crop are changed at random."""
    divisor: int = 32
    """An evaluated image is stretched until both sides are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Sizes of a detection's images, whose flip, mean and deviation are those of `augment`."""

    scale: tuple[int, int] = (1333, 800)
    """Longest and shortest side that an image is resized to fit into, its ratio kept, for training and evaluation."""
    target_kb: int = 4096
    """Room for the boxes and masks of one training image in the loader's memory, in 1024 bytes."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup, cutmix and label smoothing of a batch, as in timm's `Mixup`."""

    mixup: float = 0.8
    """Alpha of mixup's Beta distribution; 0: no mixup."""
    cutmix: float = 1.0
    """Alpha of cutmix's Beta distribution; 0: no cutmix."""
    switch: float = 0.5
    """Probability of cutmix if both are on."""
    probability: float = 1.0
    """Probability that a batch is mixed at all."""
    label_smoothing: float = 0.1
    """Mass of the target spread over all classes."""
    group_size: int = 128
    """Images of a step that share one draw of the mixing: upstream's batch of one GPU, which is mixed by itself."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How a network learns from the teacher that `distill` names, beside the labels."""

    kind: Literal["soft", "hard"] = "soft"
    """Learn the teacher's probabilities (Hinton et al. 2015), or the class it finds likeliest (DeiT's hard form)."""
    weight: float = 0.5
    """Share of the teacher in the loss; the labels have the rest."""
    temperature: float = 1.0
    """With `soft`: divides the logits of both networks; above 1 it smooths their probabilities."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with timm's decay groups: no weight decay on 1-D tensors and biases."""

    lr: float = 2e-3
    """Peak learning rate at the recipe's global batch size; another batch size does not scale it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    decay: Literal["matrices", "all", "not-norm"] = "matrices"
    """Parameters that decay: all but biases and 1-D ones, as in timm; all; or all without `norm` in their name. The
    last two are those of the dense recipes."""
    layer_decay: float = 1.0
    """Layer-wise decay of the learning rate, from the classifier down to the stem: 0.65 to 0.9 in fine-tuning."""
    clip_grad_norm: float | None = None
    """Limit of the global gradient norm; None: no clipping."""


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
    """Learning rate at the end of the cosine and during the cooldown."""
    cooldown_epochs: float = 10.0
    """Epochs at `min_lr` after the `epochs` of the cosine."""
    warmup_steps: int | None = None
    """Steps of a warm-up whose factor multiplies the running cosine, as in mmcv; None: `warmup_epochs` and timm's."""
    warmup_ratio: float = 0.1
    """With `warmup_steps`: factor of the first step."""
    step_epochs: tuple[float, ...] = ()
    """Epochs from whose end on the learning rate is a tenth of what it was, instead of the cosine."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training, independent of where it runs. Steps are optimizer steps."""

    task: TaskName = "classification"
    """What is learned: one label for each image, one for each pixel, or the objects in each image."""
    seed: int = 0
    """Seed of the weights, the sample order, the augmentation and the mixing."""
    epochs: float = 300.0
    """Passes over the training split before the cooldown."""
    steps: int | None = None
    """Optimizer steps of the whole training, instead of epochs; the schedule is scaled to it."""
    global_batch_size: int = 1024
    """Samples of one optimizer step over all ranks."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Samples of one forward pass of one rank; None: global_batch_size / world_size, at most 128. auto: as many of
    these as fit into the memory of the GPUs, found at the run's first start and kept; on CPUs as None."""
    zero_stage: ZeroStage = 1
    """What DeepSpeed ZeRO partitions: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    precision: Precision = "bf16"
    """Arithmetic of the forward and backward pass (autocast); the weights stay fp32."""
    batch_norm: Literal["sync", "local"] = "sync"
    """BatchNorm statistics over all ranks, or of each rank's own micro-batch, as always on CPUs."""
    ema_decay: float = 0.9998
    """Decay of the moving average of the weights; 0: none."""
    compile: bool = False
    """Run the model through `torch.compile`."""
    cuda_graphs: bool = False
    """Record forward and backward once as CUDA graphs and replay them: few launches. No GPU has run this yet."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations: less memory, a third more work."""
    save_every_steps: int = 500
    """Interval of checkpoints: the most steps that a kill can cost."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints that are kept; the best by the primary metric (top-1) is kept too."""
    eval_every_steps: int | None = None
    """Interval of evaluations; None: once an epoch. The last step is always evaluated."""
    log_every_steps: int = 50
    """Interval of the progress lines in the log (`metrics.jsonl` has every step)."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop, or go back to the last checkpoint and skip the batch."""
    max_skipped_batches: int = 3
    """With `on_non_finite skip`: the run stops if it would skip more batches than this."""
    collective_timeout_s: float = 600.0
    """Seconds that a rank waits for the others before the attempt ends with the names of the hanging ranks."""
    slow_factor: float = 1.5
    """A rank is called slow when its own work takes more than this many times that of the others."""
    preflight: Literal["auto", "on", "off"] = "auto"
    """Try ranks, nodes and network at the start of each attempt; auto: where several nodes or GPUs train."""
    preflight_slow: Literal["go-on", "restart"] = "go-on"
    """Where the preflight finds a slow node that Slurm can leave out: go on, or requeue the job at once."""
    exclude_share: float = 0.25
    """Greatest share of the partition's nodes that a requeued job avoids, because the preflight found them slow or
    broken; 0: none, and those that were left out before are taken back."""
    audit_samples: bool = False
    """Write which rank read which sample to `RUN_DIR/audit/`."""
    profile: int = 0
    """Steps of each attempt, after its first ten, that torch's profiler traces on every rank, to `RUN_DIR/profile/`."""
    memory_snapshot: bool = False
    """Write to `RUN_DIR/profile/` what each line of code allocates on the GPUs in the first steps of each attempt."""
    initialise_from: str | None = None
    """Weights to start a new run from: a run directory, a `models:/` URI, or a .safetensors, .pth or .ckpt file."""
    initialise_entry: str | None = None
    """Entry of that file to take, such as state_dict; None: averaged weights if there are some, else the first."""
    distill: str | None = None
    """Teacher to learn from: a run directory, a `models:/` URI, a file of weights, or `timm:NAME` with its weights."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def micro_batch(self, world_size: int) -> int:
        """Return the samples of one forward pass: as configured, or the largest divisor up to 128 of a rank's share.

        With `auto` it is not known yet: `pipeline.config.checks.with_micro_batch` gives a config that says it.
        """
        assert self.micro_batch_size != AUTO, "the micro-batch is not found yet"
        if isinstance(self.micro_batch_size, int):
            return self.micro_batch_size
        return self.possible_micro_batches(world_size)[-1]

    def possible_micro_batches(self, world_size: int) -> list[int]:
        """Return the micro-batches among which one is taken that is not given: the divisors up to 128 of a share."""
        share = max(1, self.global_batch_size // world_size)
        return [m for m in range(1, min(share, LARGEST_MICRO_BATCH) + 1) if share % m == 0]

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Return the micro-batches of one optimizer step on each rank."""
        return self.global_batch_size // (self.micro_batch(world_size) * world_size)
