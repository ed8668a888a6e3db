"""The DeepSpeed engine: one optimizer step with it, and access to its state.

The weights stay fp32 and the forward runs under autocast (DeepSpeed's `torch_autocast`), because BatchNorm fails under
DeepSpeed's own bf16 mode on a CPU. `pipeline.engine.loss_scaler` has the loss scale of fp16.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from types import ModuleType
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
from pipeline.engine.loss_model import Losses, LossModel
from pipeline.engine.loss_scaler import DeepSpeedScaler, LossScaler, NoScaler, TorchScaler
from pipeline.engine.optimizer import ParameterGroup, build_optimizer, parameter_groups
from pipeline.tasks import find_task
from transxnet.recompute import recompute_in_backward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """A model under DeepSpeed ZeRO: forward, backward and update of one optimizer step, and access to its state.

    Attributes:
        network: the network alone, whose weights may be views of flat parameters (`pipeline.engine.flat`).
        model: what DeepSpeed partitions: the network, or the `FlatModel` around it.
        deepspeed: DeepSpeed's engine.
        optimizer: DeepSpeed's optimizer; under stage 0 the AdamW itself.
        adamw: the AdamW that updates the weights.
        scaler: the loss scale, which is 1 but under fp16.
        stage: ZeRO stage.
        accumulation: micro-batches of one optimizer step on each rank.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, world: World, record: Record = record_cuda_graphs
    ) -> None:
        """Wrap a model.

        Args:
            model: its weights are the starting point, and equal on every rank.
            config: of the training, checked for the size of `world`.
            world: this process among the ranks.
            record: how the forward and the backward are recorded with `cuda_graphs`.
        """
        deepspeed = _set_up_deepspeed(config, world)
        self.config, self.world = config, world
        self.stage = config.zero_stage
        self.accumulation = config.gradient_accumulation_steps(world.size)
        self.network = prepare_network(model, config, world)
        self.model, groups = flatten_parameters(self.network, config)
        self.model.to(world.device)
        self.adamw = build_optimizer(self.model, groups, config, world.device)
        with_loss = LossModel(self.model, training_losses(config))
        engine, optimizer, _, _ = deepspeed.initialize(
            model=Graphed(with_loss, record) if config.cuda_graphs else with_loss,
            optimizer=self.adamw,
            config=deepspeed_config(config, world.size),
            dist_init_required=False,
        )
        self.deepspeed: Any = engine
        self.optimizer: Any = optimizer
        self.model.train()
        self.scaler = self._build_scaler()

    def _build_scaler(self) -> LossScaler:
        if self.config.precision != "fp16":
            return NoScaler()
        if self.stage == 0:
            return TorchScaler(self.deepspeed.torch_autocast_z0_gradscaler)
        return DeepSpeedScaler(self.optimizer)

    def step(
        self, batches: Iterable[tuple[torch.Tensor, ...]], *, lr: float, seed: int, update: bool = True
    ) -> tuple[float, float]:
        """One optimizer step over this rank's micro-batches.

        Args:
            batches: `gradient_accumulation_steps` tuples of the network's inputs, on the device: images [N, 3, H, W],
                and what the task's losses need beside them, such as targets [N, classes].
            lr: learning rate of this step; with layer decay, that of the last layer.
            seed: seed of what this rank's first micro-batch drops (`step_seed`). The seed of a later one is greater by
                the ranks in between, so a micro-batch drops the same on any number of ranks.
            update: False skips the batch: it is read, and nothing is computed from it.

        Returns:
            This rank's mean loss, and the norm of the gradient of all ranks before clipping. The norm is inf where an
            overflow under fp16 kept the optimizer from updating.

        Raises:
            RuntimeError: `batches` are more or fewer than `gradient_accumulation_steps`.
        """
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if not update:
            for _ in batches:
                pass
            return 0.0, 0.0
        losses = []
        norm = math.nan
        for inputs in batches:
            torch.manual_seed(seed + len(losses) * self.world.size)
            loss = self.deepspeed(*inputs)
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
        """Release the CUDA graphs, which must be gone before the process group is; a later step records anew."""
        if isinstance(self.deepspeed.module, Graphed):
            self.deepspeed.module.release()

    def _plain_grad_norm(self) -> float:
        norms = [
            torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in self.model.parameters() if p.grad is not None
        ]
        norm = float(torch.stack(norms).norm())
        return norm / self.scaler.scale if math.isfinite(norm) else math.inf

    def refresh_weights(self) -> None:
        """Give the forward the loaded weights: stage 3 keeps whole copies of its small parameters on every rank."""
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
        """The state that is not a tensor: the number of updates applied, and the loss scaler's state."""
        return {"optimizer_steps": int(self._adam_states()[0]["step"].item()), **self.scaler.state()}

    def load_scalars(self, state: dict[str, float]) -> None:
        """Inverse of `scalars`."""
        for adam_state in self._adam_states():
            adam_state["step"].fill_(float(state["optimizer_steps"]))
        self.scaler.load(state)


def training_losses(config: TrainConfig) -> Losses:
    """The losses of the task, or those that take a teacher's answer as well."""
    task = find_task(config.task)
    if config.distill is None:
        return task.losses
    assert task.distillation is not None
    return task.distillation.losses(config)


def _set_up_deepspeed(config: TrainConfig, world: World) -> ModuleType:
    """DeepSpeed, imported and told what it would otherwise decide for itself, with the process group it shares."""
    deepspeed = import_deepspeed()
    from deepspeed.utils import groups, logger

    logger.setLevel("WARNING")
    if not config.compile:
        defer_compiler()
    # Otherwise DeepSpeed compiles an extension on every CPU node, and a killed build leaves a lock that hangs the next.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Otherwise DeepSpeed makes a second group of all ranks, which waits half an hour for a rank that hangs.
    groups._WORLD_GROUP = dist.group.WORLD
    deepspeed.init_distributed(dist_backend="nccl" if world.device.type == "cuda" else "gloo", verbose=False)
    return deepspeed


def prepare_network(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """The network with synchronised BatchNorm, gathered leaves under stage 3, and recomputed blocks, as configured."""
    import transxnet

    if config.batch_norm == "sync" and world.device.type == "cuda" and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.zero_stage == 3:
        # The weights of these modules are used outside their own forward, so each module is gathered as a whole.
        import_deepspeed().utils.set_z3_leaf_modules(model, transxnet.leaf_modules())
    if config.gradient_checkpointing:
        recompute_in_backward(model, tuple(transxnet.leaf_modules()))
    if config.compile:
        model.compile()
    return model


def published_names(network: nn.Module, config: TrainConfig) -> dict[str, str]:
    """The name of each parameter in the published files."""
    own = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    state = find_task(config.task).to_published(network.state_dict(keep_vars=True))
    return {own[id(tensor)]: name for name, tensor in state.items() if id(tensor) in own}


def flatten_parameters(network: nn.Module, config: TrainConfig) -> tuple[nn.Module, dict[str, ParameterGroup]]:
    """What DeepSpeed trains, and its parameter groups: one flat parameter a group, where the weights may be views.

    Stage 3 partitions each weight by itself, and a compiled network must own its weights.
    """
    published = published_names(network, config) if config.optimizer.decay == "not-norm" else None
    groups = parameter_groups(network, config.optimizer, published)
    if config.compile or config.zero_stage == 3:
        return network, groups
    flat = FlatModel(network, {name: list(group.names) for name, group in groups.items()})
    return flat, {name: replace(group, names=(name,)) for name, group in groups.items()}
