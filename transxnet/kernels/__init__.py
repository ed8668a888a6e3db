"""Triton kernels of TransXNet's operators, each with its plain PyTorch form beside it.

Imported only where they run: `transxnet.backend` decides, and nothing else in the package needs triton.
"""

__all__: list[str] = []
