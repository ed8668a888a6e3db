"""The benchmark's counts, and its command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import transxnet
from transxnet.bench import count_gmac, main


@pytest.mark.parametrize(
    ("name", "gmac"), [("transxnet_t", 1.805), pytest.param("transxnet_s", 4.603, marks=pytest.mark.slow),
                       pytest.param("transxnet_b", 8.347, marks=pytest.mark.slow)],
)  # fmt: skip
def test_multiplications_are_those_of_the_published_models(name: str, gmac: float):
    assert count_gmac(transxnet.build(name, backend="reference"), 224) == pytest.approx(gmac, abs=0.0005)


@pytest.mark.thorough
def test_the_command_prints_a_line_for_a_network_and_writes_json(tmp_path: Path):
    path = tmp_path / "bench.json"
    command = ["--variants", "n", "--sizes", "32", "--batch", "2", "--rounds", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "transxnet.bench", *command, "--json", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["transxnet_n", "32"]]
    [first] = json.loads(path.read_text())
    assert first["parameters"] > 1e6
    assert first["gmac"] > 0
    assert first["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backends", "triton"], "--backends triton: backend 'triton' needs triton, a CUDA device"),
        (["--json", "nowhere/bench.json"], "nowhere; make it first"),
        (["--batch", "1"], "--batch at least 2"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_measured(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cpu", *flags])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
