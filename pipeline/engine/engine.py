"""The DeepSpeed engine: one optimizer step with it, and access to its state.

Precision is autocast over fp32 weights (`torch_autocast`), because BatchNorm fails under DeepSpeed's own bf16 mode on
the CPU; under fp16 DeepSpeed's dynamic loss scaler runs over autocast, because torch's GradScaler decides on each
rank's partition alone and would let ranks diverge.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipeline.config.schema import TrainConfig
from pipeline.engine.cuda_graphs import Graphed, Record, record_cuda_graphs
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.engine.deepspeed_imports import defer_compiler, import_deepspeed
from pipeline.engine.distributed import World
from pipeline.engine.flat import FlatModel
from pipeline.engine.fragments import Fragment, LocalWeight, iter_fragments, local_weights, optimizer_states
from pipeline.engine.gradient_checkpointing import recompute_in_backward
from pipeline.engine.loss import LossModel
from pipeline.engine.optimizer import build_optimizer, parameter_groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """A model under DeepSpeed ZeRO: forward, backward and update of one optimizer step, and access to its state."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, world: World, record: Record = record_cuda_graphs
    ) -> None:
        """Wrap `model`, whose weights are the starting point and equal on every rank.

        `record` is what records with `cuda_graphs`.
        """
        deepspeed = import_deepspeed()
        from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
        from deepspeed.utils import groups as groups_of_deepspeed
        from deepspeed.utils import logger

        import transxnet

        logger.setLevel("WARNING")
        if not config.compile:
            defer_compiler()
        # Otherwise its initialisation compiles an extension on every CPU node, and a killed build locks the next.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if config.batch_norm == "sync" and world.device.type == "cuda" and world.size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.network = model
        if config.zero_stage == 3:
            # Their weights are used outside their own forward, so they are gathered as one.
            deepspeed.utils.set_z3_leaf_modules(model, transxnet.leaf_modules())
        groups = parameter_groups(model, config.optimizer)
        if config.gradient_checkpointing:
            recompute_in_backward(model, tuple(transxnet.leaf_modules()))
        if config.compile:
            model.compile()
        elif config.zero_stage < 3:
            # Stage 3 partitions each weight by itself, and a compiled network must own its weights.
            model = FlatModel(model, {name: list(group.names) for name, group in groups.items()})
            groups = {name: replace(group, names=(name,)) for name, group in groups.items()}
        model.to(world.device)
        self.config, self.world = config, world
        self.stage = config.zero_stage
        self.accumulation = config.gradient_accumulation_steps(world.size)
        self.adamw = build_optimizer(model, groups, config, world.device)
        # DeepSpeed would make a second group of all ranks, which waits half an hour for a rank that hangs.
        groups_of_deepspeed._WORLD_GROUP = dist.group.WORLD
        deepspeed.init_distributed(dist_backend="nccl" if world.device.type == "cuda" else "gloo", verbose=False)
        with_loss = LossModel(model)
        deepspeed_engine, optimizer, _, _ = deepspeed.initialize(
            model=Graphed(with_loss, record) if config.cuda_graphs else with_loss,
            optimizer=self.adamw,
            config=deepspeed_config(config, world.size),
            dist_init_required=False,
        )
        self.deepspeed: Any = deepspeed_engine
        self.optimizer: Any = optimizer
        self.model = model
        self.model.train()
        self._scaler = None
        if config.precision == "fp16":
            if self.stage == 0:
                self._scaler = self.deepspeed.torch_autocast_z0_gradscaler
            else:
                self.optimizer.torch_autocast_gradscaler = None
                self.optimizer.loss_scaler = CreateLossScaler(
                    dtype=torch.float16,
                    static_loss_scale=0,
                    dynamic_scaling=True,
                    dynamic_loss_args={
                        "init_scale": 2**16,
                        "scale_window": 2000,
                        "min_scale": 1,
                        "delayed_shift": 1,
                        "consecutive_hysteresis": False,
                    },
                )
                self.optimizer.dynamic_loss_scale = True

    def step(
        self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, lr: float, seed: int, update: bool = True
    ) -> tuple[float, float]:
        """One optimizer step over this rank's micro-batches.

        Args:
            batches: `gradient_accumulation_steps` pairs of images [N, 3, H, W] and targets [N, classes], on the device.
            lr: learning rate of this step, of the last layer where layers differ.
            seed: of this step's and rank's randomness (drop path); micro-batches continue its stream.
            update: False leaves the batch out: it is read, and nothing is computed from it.

        Returns:
            This rank's mean loss, and the global gradient norm before clipping (inf where the update was skipped).
        """
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if not update:
            for _ in batches:
                pass
            return 0.0, 0.0
        torch.manual_seed(seed)
        losses = []
        norm = math.nan
        for images, targets in batches:
            loss = self.deepspeed(images, targets)
            self.deepspeed.backward(loss)
            losses.append(loss.detach())
            if self.stage == 0 and len(losses) == self.accumulation:
                norm = self._plain_grad_norm()
            self.deepspeed.step()
        if len(losses) != self.accumulation:
            raise RuntimeError(f"{len(losses)} micro-batches in a step of {self.accumulation}")
        if self.stage:
            norm = float(self.deepspeed.get_global_grad_norm())
        return float(torch.stack(losses).mean()), norm

    def close(self) -> None:
        """Let go of what must be gone before the ranks part: CUDA graphs, recorded anew by another step."""
        if isinstance(self.deepspeed.module, Graphed):
            self.deepspeed.module.forget()

    def _plain_grad_norm(self) -> float:
        norms = [
            torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in self.model.parameters() if p.grad is not None
        ]
        norm = float(torch.stack(norms).norm())
        return norm / self.loss_scale if math.isfinite(norm) else math.inf

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with before the backward; 1 but under fp16."""
        if self._scaler is not None:
            return float(self._scaler.get_scale())
        return float(self.optimizer.loss_scale) if self.stage and self.config.precision == "fp16" else 1.0

    def refresh_weights(self) -> None:
        """Make what the forward reads equal to loaded weights: stage 3 keeps whole copies of its small parameters."""
        if self.stage == 3:
            for parameter in self.model.parameters():
                if parameter.ds_persist:  # pyright: ignore[reportAttributeAccessIssue]
                    parameter.partition([parameter], has_been_updated=False)  # pyright: ignore[reportAttributeAccessIssue]
                    parameter.all_gather([parameter])  # pyright: ignore[reportAttributeAccessIssue]

    def fragments(self) -> list[Fragment]:
        """The parts of weights and moments this rank holds (`pipeline.engine.fragments`)."""
        return list(iter_fragments(self.model, self.optimizer, self.adamw, self.stage, self.world.rank))

    def _adam_states(self) -> list[dict[str, torch.Tensor]]:
        return optimizer_states(self.model, self.optimizer, self.adamw, self.stage)

    def local_weights(self) -> list[LocalWeight]:
        """This rank's view of every parameter."""
        return local_weights(self.model, self.stage, self.world.rank)

    def scalars(self) -> dict[str, float]:
        """The state that is not a tensor: updates applied, and the loss scaler's."""
        state: dict[str, float] = {"optimizer_steps": int(self._adam_states()[0]["step"].item())}
        if self._scaler is not None:
            state |= {"loss_scale": self.loss_scale, "good_steps": self._scaler._get_growth_tracker()}
        elif self.config.precision == "fp16":
            scaler = self.optimizer.loss_scaler
            state |= {"loss_scale": scaler.cur_scale, "good_steps": scaler.cur_iter - scaler.last_overflow_iter - 1}
        return state

    def load_scalars(self, state: dict[str, float]) -> None:
        """Inverse of `scalars`."""
        for adam_state in self._adam_states():
            adam_state["step"].fill_(float(state["optimizer_steps"]))
        if "loss_scale" not in state or self.config.precision != "fp16":
            return
        scale, good = float(state["loss_scale"]), int(state["good_steps"])
        if self._scaler is not None:
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": scale, "_growth_tracker": good})
        else:
            scaler = self.optimizer.loss_scaler
            scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = scale, good, -1
