"""What a sweep consists of, what it refuses, and the one MLflow run above its runs."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config.schema import ConfigError, ModelConfig, TrainConfig
from pipeline.config.sweep import build_members
from pipeline.launch.options import parse
from pipeline.recipes.digits import demo
from pipeline.run.status import find_runs
from pipeline.run.sweep import prepare_folder, read_folder
from pipeline.status.sync import sync_run
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import EVERYTHING, Shipper
from pipeline.tracking.tracker import resolve_tracking_uri
from tests.support.tracking_runs import append_records, config_json


def test_every_combination_is_a_training_named_after_its_values():
    options = parse(["--recipe", "demo", "--sweep", "train.optimizer.lr=1e-3,2e-3", "--sweep", "train.zero-stage=0,1"])
    members = build_members(options.sweep, options.train)
    assert [member.name for member in members] == [
        "lr=0.001,zero_stage=0",
        "lr=0.001,zero_stage=1",
        "lr=0.002,zero_stage=0",
        "lr=0.002,zero_stage=1",
    ]
    assert [(m.config.optimizer.lr, m.config.zero_stage) for m in members] == [
        (1e-3, 0),
        (1e-3, 1),
        (2e-3, 0),
        (2e-3, 1),
    ]
    assert members[0].config.model == demo().model
    named = build_members(["train.optimizer.clip_grad_norm=none,1"], options.train)
    assert [member.config.optimizer.clip_grad_norm for member in named] == [None, 1.0]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (["train.optimizer.lrr=1"], "there is no field train.optimizer.lrr; did you mean train.optimizer.lr?"),
        (["nodes=1,2"], "there is no field nodes; sweep a field of the training"),
        (["train.seed"], "write it as train.seed=A,B"),
        (["train.seed=1,"], "write it as train.seed=A,B"),
        (["train.seed=1,x"], "x is no int"),
        (["train.optimizer.lr=1e-3,0.001"], "0.001 is there twice"),
        (["train.seed=1", "train.seed=2"], "train.seed is given twice"),
        (["train.precision=bf16,bf15"], "bf15 is not one of fp32, bf16, fp16"),
        (["train.augment.crop-scale=0.1,1"], "a field of several values cannot be swept"),
    ],
)
def test_what_cannot_be_swept_is_one_line(sweep: list[str], words: str):
    with pytest.raises(ConfigError) as error:
        build_members(sweep, TrainConfig())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["train.zero_stage", "zero_stage"])
def test_a_flag_that_contradicts_the_sweep_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"--train\.zero-stage is given as a flag and in --sweep"):
        parse(["--sweep", f"{name}=0,1", "--train.zero-stage", "2"])


def test_values_may_be_added_to_a_sweep_but_a_run_is_none(tmp_path: Path):
    prepare_folder(tmp_path, ["train.seed=1,2"], ["seed=1", "seed=2"])
    key = (read_folder(tmp_path) or {})["key"]
    prepare_folder(tmp_path, ["train.seed=2,3"], ["seed=2", "seed=3"])
    assert read_folder(tmp_path) == {"key": key, "sweep": ["train.seed=2,3"], "members": ["seed=1", "seed=2", "seed=3"]}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the folder of a run"):
        prepare_folder(tmp_path, ["train.seed=1"], ["seed=1"])


@pytest.mark.slow
def test_runs_of_a_sweep_that_start_together_have_one_parent_which_ends_with_the_last(tmp_path: Path):
    uri, folder = resolve_tracking_uri(tmp_path), tmp_path / "runs" / "sweep"
    names = ["seed=1", "seed=2"]
    folder.mkdir(parents=True)
    prepare_folder(folder, ["train.seed=1,2,3"], [*names, "seed=3"])
    for name in [*names, "seed=3"]:
        content = config_json(folder / name, TrainConfig(model=ModelConfig(name="transxnet_n")), uri)
        (folder / name / "config.json").write_text(json.dumps(content | {"sweep": str(folder)}))
        if name in names:
            append_records(folder / name, range(1, 4))
    everything = sorted(run.name for run in find_runs(tmp_path / "runs"))
    assert everything == sorted(run.name for run in find_runs(folder)) == [*names, "seed=3"]
    client = open_client(uri)

    def begin(name: str) -> Shipper:
        shipper = Shipper(folder / name)
        shipper.begin({})
        shipper.ship(EVERYTHING)
        return shipper

    client.create_experiment("transxnet", artifact_location=(tmp_path / "artifacts").as_uri())
    with ThreadPoolExecutor(2) as pool:
        shippers = list(pool.map(begin, names))
    experiment = client.get_experiment_by_name("transxnet")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sweep", *names}
    parent = runs["sweep"].info.run_id
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in names} == {parent}
    assert runs["sweep"].data.tags["sweep"] == "train.seed=1,2,3"
    for shipper in shippers:
        shipper.end("FINISHED")
        shipper.send_status()
        assert client.get_run(parent).info.status == "RUNNING"
    # The third is cancelled before it begins.
    assert "status KILLED" in sync_run(folder / "seed=3")
    assert client.get_run(parent).info.status == "KILLED"
