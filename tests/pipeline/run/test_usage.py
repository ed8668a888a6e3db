"""What a run has used: hours of ranks over all attempts, and energy between samples of the same attempt."""

import json

import pytest

from jobs import Outcome
from pipeline.launch.closing import describe_end
from pipeline.run.report import write_report
from pipeline.run.status import read_status
from pipeline.run.usage import read_usage
from pipeline.status.show import format_run
from tests.support.tracking_runs import START, append_event, append_records


def samples(run_dir, node, at, **powers):
    (run_dir / "system").mkdir(exist_ok=True)
    with open(run_dir / "system" / f"node_{node}.jsonl", "a", encoding="utf-8") as file:
        for seconds in at:
            file.write(json.dumps({"time": START + seconds, "cpu_percent": 3.0, **powers}) + "\n")


def usage(run_dir):
    return read_usage(run_dir, read_status(run_dir).attempts)


def test_hours_and_energy_add_up_over_attempts_and_nodes(run_dir):
    append_event(run_dir, "start", 1, 0, step=0, world_size=4, device="cuda")
    append_event(run_dir, "end", 1, 1800, outcome="interrupted")
    append_event(run_dir, "start", 2, 1860, step=20, world_size=8, device="cuda")
    append_event(run_dir, "end", 2, 5460, outcome="finished")
    # 30 kW for ten minutes on node 0; from the last sample of the first attempt to the second attempt nothing counts.
    samples(run_dir, 0, range(0, 601, 60), gpu_0_power_w=10e3, gpu_1_power_w=20e3, gpu_0_percent=90.0)
    samples(run_dir, 0, [1780, 1870], gpu_0_power_w=10e3, gpu_1_power_w=20e3)
    # 8 kW for two minutes on node 1; over the hour after them nothing is known.
    samples(run_dir, 1, [1900, 1960, 2020, 5400], gpu_0_power_w=8e3)
    with open(run_dir / "system" / "node_1.jsonl", "a", encoding="utf-8") as file:
        file.write('{"time": 17000')
    used = usage(run_dir)
    assert used.rank_hours == pytest.approx((4 * 1800 + 8 * 3600) / 3600)
    assert used.energy_kwh == pytest.approx((30e3 * 600 + 8e3 * 120) / 3.6e6)
    assert used.describe() == "10.0 GPU-hours, 5.3 kWh of its nodes' GPUs"


def test_status_report_and_last_lines_say_what_a_run_on_cpus_has_used(run_dir):
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    append_records(run_dir, range(1, 21))
    append_event(run_dir, "end", 1, 1350, outcome="cancelled")
    samples(run_dir, 0, [10, 20])
    assert usage(run_dir).energy_kwh is None
    assert "  used       22.5 process-minutes" in format_run(read_status(run_dir), START)
    assert "| used | 22.5 process-minutes |" in (write_report(run_dir) / "report.md").read_text()
    assert "\nused      22.5 process-minutes\n" in describe_end(run_dir, Outcome.CANCELLED)
