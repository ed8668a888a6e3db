"""The loss scale of fp16 training behind one interface, whoever keeps it: torch, DeepSpeed, or nobody.

Under ZeRO stages 1 to 3 torch's GradScaler looks only at the rank's own partition of the gradients, so that ranks would
choose different scales. There DeepSpeed's own dynamic scaler, which all ranks agree on, takes its place.
"""

from typing import Any, Protocol

import torch

INITIAL_SCALE = 2.0**16
"""Loss scale of the first step, as torch's GradScaler has it."""
GROWTH_INTERVAL = 2000
"""Steps without an overflow after which the scale doubles, as torch's GradScaler has it."""


class LossScaler(Protocol):
    """What multiplies the loss before the backward, and halves where a gradient overflows."""

    @property
    def scale(self) -> float:
        """Factor of the loss in the next backward."""
        ...

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of it: `loss_scale` and `good_steps`; empty without a scaler."""
        ...

    def load(self, state: dict[str, float]) -> None:
        """Inverse of `state`; a state without a scale (of a run in fp32 or bf16) leaves the initial scale."""
        ...


class NoScaler:
    """fp32 and bf16 need no scale."""

    scale = 1.0

    def state(self) -> dict[str, float]:
        """Nothing to keep."""
        return {}

    def load(self, state: dict[str, float]) -> None:
        """Nothing to restore."""


class TorchScaler:
    """torch's GradScaler, which DeepSpeed makes for stage 0."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        """Read and write the scaler's state."""
        self._scaler = scaler

    @property
    def scale(self) -> float:
        """Factor of the loss in the next backward."""
        return float(self._scaler.get_scale())

    def state(self) -> dict[str, float]:
        """The scale and the steps since it changed."""
        return {"loss_scale": self.scale, "good_steps": self._scaler._get_growth_tracker()}

    def load(self, state: dict[str, float]) -> None:
        """Restore the scale and the steps since it changed."""
        if "loss_scale" in state:
            restored = {"scale": float(state["loss_scale"]), "_growth_tracker": int(state["good_steps"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | restored)


class DeepSpeedScaler:
    """DeepSpeed's dynamic scaler, which replaces torch's in a ZeRO optimizer of stages 1 to 3."""

    def __init__(self, optimizer: Any) -> None:
        """Give the ZeRO optimizer a dynamic scaler with the settings of torch's."""
        from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

        optimizer.torch_autocast_gradscaler = None
        optimizer.loss_scaler = CreateLossScaler(
            dtype=torch.float16,
            static_loss_scale=0,
            dynamic_scaling=True,
            dynamic_loss_args={
                "init_scale": INITIAL_SCALE,
                "scale_window": GROWTH_INTERVAL,
                "min_scale": 1,
                "delayed_shift": 1,
                "consecutive_hysteresis": False,
            },
        )
        optimizer.dynamic_loss_scale = True
        self._optimizer = optimizer
        self._scaler: Any = optimizer.loss_scaler

    @property
    def scale(self) -> float:
        """Factor of the loss in the next backward."""
        return float(self._optimizer.loss_scale)

    def state(self) -> dict[str, float]:
        """The scale and the steps since it changed."""
        scaler = self._scaler
        return {"loss_scale": scaler.cur_scale, "good_steps": scaler.cur_iter - scaler.last_overflow_iter - 1}

    def load(self, state: dict[str, float]) -> None:
        """Restore the scale and the steps since it changed."""
        if "loss_scale" in state:
            scaler = self._scaler
            scaler.cur_scale, scaler.last_overflow_iter = float(state["loss_scale"]), -1
            scaler.cur_iter = int(state["good_steps"])
