"""Imports of the process that ranks are forked from; DeepSpeed only without a GPU, as CUDA survives no fork."""

# ruff: noqa: F401
import os
from pathlib import Path

import pyarrow.dataset
import setuptools

import pipeline.register.registration
import pipeline.train.attempt
import transxnet.model
from pipeline.engine.deepspeed_imports import import_deepspeed

if not Path("/dev/nvidiactl").exists():
    os.environ["DS_ACCELERATOR"] = "cpu"
    import_deepspeed()
    # DeepSpeed would import these at the first engine of each process.
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.ops.op_builder.all_ops
    import deepspeed.runtime.zero.muon.muon_optimizer
