"""The command `python -m pipeline.doctor`: what a training would find here, and what to type next.

Each file looks at one thing and returns `Finding`s: `machine`, `storage`, `cluster`, `tracking`. `advice` turns what
the cluster has into commands.
"""

from pipeline.doctor.finding import Finding, Level

__all__ = ["Finding", "Level"]
