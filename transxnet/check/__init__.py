"""Kernels prove themselves: on each node and precision they are compared with plain PyTorch before they are trusted.

`python -m transxnet.check` prints the table. `TransXNet.forward_features` checks when a process first uses the kernels.

| file | responsibility |
|---|---|
| `operators.py` | the operators with kernels, as small networks |
| `run.py` | runs one of them on one backend |
| `compilation.py` | compiles the kernels of all, several at a time |
| `proof.py` | compares and times each operator on both backends |
| `store.py` | keeps a node's verdicts in a file, and leaves failed operators to PyTorch |
| `__main__.py` | the command |
"""

from transxnet.check.proof import Verdict, prove
from transxnet.check.store import check_kernels, report_lines

__all__ = ["Verdict", "check_kernels", "prove", "report_lines"]
