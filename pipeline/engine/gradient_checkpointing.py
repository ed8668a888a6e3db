"""Gradient checkpointing: a block keeps its input alone, and is computed again when its gradient is needed.

The same numbers for less memory and about a third more computation. What a block must not do twice is to count its
BatchNorm statistics, whichever implementation counts them: they are put back after the second time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """Let every module of `kinds` in `network` forget what it computed until the backward; returns how many there are.

    Random draws (drop path) are repeated. Modules keep their names, parameters and hooks.
    """
    modules = [module for module in network.modules() if isinstance(module, kinds)]
    for module in modules:
        module.forward = partial(_forgetful, module, module.forward)
    return len(modules)


def _forgetful(module: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _uncounted(module)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]


@contextmanager
def _uncounted(module: nn.Module) -> Iterator[None]:
    """Put the module's buffers back at the end, unseen by autograd, which holds them for the first computation."""
    buffers = [buffer.data for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        torch._foreach_copy_(buffers, before)
