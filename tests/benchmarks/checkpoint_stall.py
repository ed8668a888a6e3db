"""`python -m tests.benchmarks.checkpoint_stall`: how long a save stops the training, compared with DeepSpeed's.

Medians for TransXNet-T under ZeRO stage 1 on two CPU ranks, alternating in one run. The pause is the time that the loop
waits in `Saver.start`, with the previous save finished; `behind` is the write in the background.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.run.recorder import Recorder
from pipeline.train.model import build_model
from tests.support.ranks import run_ranks


def measure(world: World, folder: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round on this rank."""
    config = TrainConfig(global_batch_size=4, model=ModelConfig(name="transxnet_t"))
    engine = Engine(build_model(config, 1000), config, world)
    ema = Ema(engine.local_weights(), engine.network, config.ema_decay, partitioned=False)
    store = CheckpointStore(Path(folder))
    saver = Saver(
        store,
        engine,
        ema,
        Recorder(Path(folder), is_main=world.is_main, world_size=world.size),
        every=100,
        keep=2,
        facts=dict,
    )
    times: dict[str, list[float]] = {"pause": [], "behind": [], "deepspeed": []}
    for step in range(1, rounds + 2):
        dist.barrier()
        began = time.perf_counter()
        saver.start(step, None)
        paused = time.perf_counter()
        saver.finish()
        finished = time.perf_counter()
        dist.barrier()
        blocking = time.perf_counter()
        engine.deepspeed.save_checkpoint(f"{folder}/deepspeed", tag=f"step{step % 2}", save_latest=False)
        dist.barrier()
        done = time.perf_counter()
        if step > 1:
            times["pause"].append(paused - began)
            times["behind"].append(finished - paused)
            times["deepspeed"].append(done - blocking)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        ranks = run_ranks(measure, 2, folder, arguments.rounds)
    medians = {name: max(statistics.median(rank[name]) for rank in ranks) for name in ranks[0]}
    for name, seconds in medians.items():
        print(f"{name:10s} {1000 * seconds:8.1f} ms")
    print(f"pause / engine.save_checkpoint = {medians['pause'] / medians['deepspeed']:.3f}")


if __name__ == "__main__":
    main()
