"""What the processes that tests fork have imported already. Without a GPU: CUDA does not survive a fork."""

import os
from pathlib import Path

import pipeline.train.attempt  # noqa: F401
from pipeline.engine.deepspeed_imports import import_deepspeed

if not Path("/dev/nvidiactl").exists():
    os.environ["DS_ACCELERATOR"] = "cpu"
    import_deepspeed()
