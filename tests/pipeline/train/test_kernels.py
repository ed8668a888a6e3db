"""The check of the kernels at an attempt's start, with two ranks."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import transxnet
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.engine.distributed import World
from pipeline.run.recorder import Recorder
from pipeline.train.kernels import check_kernels
from tests.support.ranks import environment, free_port, run_ranks
from transxnet.backend import left_to_pytorch
from transxnet.check import Verdict
from transxnet.check.operators import OPERATORS
from transxnet.check.store import CACHE_VARIABLE, store_path

pytest.importorskip("triton", reason="triton is not installed")

CONFIG = TrainConfig(precision="fp32", model=ModelConfig(name="transxnet_n", backend="triton"))


def verdict(operator: str, problem: str) -> Verdict:
    return Verdict(operator=operator, error=1e-7, pytorch_error=1e-7, kernel_ms=2.0, pytorch_ms=1.0, problem=problem)


def check_on_two_nodes(world: World, folder: str) -> list[str]:
    """Check with the verdicts of a node of its own, where one operator failed; return what is left to PyTorch."""
    os.environ |= {"TRITON_INTERPRET": "1", CACHE_VARIABLE: f"{folder}/node{world.rank}", "LOCAL_RANK": "0"}
    path = store_path(world.device, torch.float32)
    path.parent.mkdir()
    failed = ("residual", "group_norm")[world.rank]
    verdicts = [verdict(operator.name, "it takes 2 ms" * (operator.name == failed)) for operator in OPERATORS]
    path.write_text(json.dumps({"verdicts": [dataclasses.asdict(found) for found in verdicts]}))
    run_dir = Path(folder) / "run"
    recorder = Recorder(run_dir, is_main=world.is_main, world_size=world.size)
    check_kernels(CONFIG, world, run_dir, recorder)
    return sorted(left_to_pytorch())


def test_ranks_leave_the_same_operators_to_pytorch_and_rank_0_writes_the_table(tmp_path: Path):
    (tmp_path / "run").mkdir()
    assert run_ranks(check_on_two_nodes, 2, str(tmp_path)) == [["group_norm", "residual"]] * 2
    table = json.loads((tmp_path / "run/submitit/kernels_report_1.json").read_text())
    assert table["left_to_pytorch"] == ["group_norm", "residual"]
    assert [line["operator"] for line in table["operators"] if line["problem"]] == ["residual"]
    assert {"error", "pytorch_error", "kernel_ms", "pytorch_ms"} < set(table["operators"][0])


SCRIPT = """
import json, sys
from pathlib import Path
import torch, transxnet
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.engine.distributed import join_world, leave_world
from pipeline.run.recorder import Recorder
from pipeline.train.kernels import check_kernels
from transxnet.backend import left_to_pytorch

world = join_world(1800)
config = TrainConfig(precision="fp32", model=ModelConfig(name="transxnet_n", backend="triton"))
run_dir = Path(sys.argv[1])
check_kernels(config, world, run_dir, Recorder(run_dir, is_main=world.is_main, world_size=2))
print("LEFT", *sorted(left_to_pytorch()), "OF", transxnet.__file__, flush=True)
leave_world()
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_process_of_a_node_compares_the_kernels_and_both_ranks_replace_a_broken_one(tmp_path: Path):
    """A copy of the package, whose residual raises and counts how often it is called, in triton's interpreter."""
    package = tmp_path / "copy/transxnet"
    shutil.copytree(Path(transxnet.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    broken = package / "kernels/residual.py"
    call, calls = "    return _ScaledResidualFunction.apply(", tmp_path / "calls"
    text = broken.read_text()
    assert call in text
    broken.write_text(
        text.replace(call, f"    open({str(calls)!r}, 'a').write('call ')\n    raise RuntimeError('broken')\n{call}")
    )
    (tmp_path / "run").mkdir()
    port, project = free_port(), Path(transxnet.__file__).parents[1]
    settings = {
        "TRITON_INTERPRET": "1",
        CACHE_VARIABLE: str(tmp_path / "cache"),
        "PYTHONPATH": f"{package.parent}:{project}",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT, str(tmp_path / "run")],
            env={**os.environ, **environment(rank, 2, port), **settings}, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=1700)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    wanted = f"LEFT residual OF {package / '__init__.py'}"
    assert all(wanted in output for output in outputs), outputs
    assert calls.read_text() == "call ", "both processes compared the kernels"
    [file] = (tmp_path / "cache").glob("*.json")
    assert len(json.loads(file.read_text())["verdicts"]) == len(OPERATORS)
    assert ["WARNING: kernels of residual" in output for output in outputs] == [True, False]
    table = json.loads((tmp_path / "run/submitit/kernels_report_1.json").read_text())
    assert table["left_to_pytorch"] == ["residual"]
    assert "RuntimeError: broken" in next(line["problem"] for line in table["operators"] if line["problem"])
