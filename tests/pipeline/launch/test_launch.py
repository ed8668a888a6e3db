"""What a launch shows and refuses before a job is queued."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jobs
import transxnet
from jobs import Outcome, Resources
from pipeline.common.errors import InputError
from pipeline.common.packages import PACKAGES
from pipeline.config.schema import TrainConfig
from pipeline.data.split import open_split
from pipeline.launch.closing import as_typed, describe_end
from pipeline.launch.command import main
from pipeline.launch.data_checks import check_shards
from pipeline.launch.options import LaunchError, parse
from pipeline.launch.place_checks import check_tracking, describe_slow_precision
from pipeline.launch.plan import build_plan
from pipeline.launch.run import prepare_run
from pipeline.recipes import RECIPES
from pipeline.run.config import read_config
from pipeline.run.directory import prepare
from pipeline.run.micro_batch import FoundMicroBatch, write_micro_batch
from sharding import ShardingError, load_manifest
from tests.support import REPOSITORY
from tests.support.small_shards import config, pack


def test_dry_run_shows_the_array_the_snapshot_and_every_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    work, programs = tmp_path / "work", tmp_path / "programs"
    work.mkdir()
    programs.mkdir()
    (programs / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    (programs / "sinfo").chmod(0o700)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.chdir(work)
    flags = ["--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "2", "--slurm", "nice=3"]
    flags += [
        "--slurm",
        "exclusive=true",
        "--slurm",
        "nodelist=n1",
        "--evaluate",
        "job",
        "--evaluate-timeout-min",
        "30",
    ]
    assert main([*flags, "--sweep", "train.optimizer.lr=1e-3,2e-3", "--run-dir", "sweep", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    code = jobs.take_snapshot(REPOSITORY, PACKAGES, work / "sweep" / "code", copy=False)
    for words in (
        "#SBATCH --array=0-1%2\n",
        "#SBATCH --gpus-per-node=2\n",
        "#SBATCH --ntasks-per-node=2\n",
        "#SBATCH --nice=3\n",
        "#SBATCH --exclusive\n",
        f"export PYTHONPATH={code.root}$",
    ):
        assert words in shown
    evaluation = shown.partition("# each evaluation\n")[2].partition(f"# {work}/sweep")[0]
    for words in ("--nodes=1\n", "--gpus-per-node=1\n", "--ntasks-per-node=1\n", "--nice=3\n", "--time=30\n"):
        assert f"#SBATCH {words}" in evaluation
    assert "exclusive" not in evaluation
    assert "nodelist" not in evaluation
    assert f"{work}/sweep/lr=0.001/evaluations/submitit" in evaluation
    for value in (0.001, 0.002):
        _, _, after = shown.partition(f"# {work}/sweep/lr={value}/config.json\n")
        assert json.JSONDecoder().raw_decode(after)[0]["train"]["optimizer"]["lr"] == value
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-wait", "--sweep", "train.seed=1,2"], "without SLURM a sweep trains one run after the other"),
        (["--sweep", "train.global-batch-size=32,33"], "global_batch_size=33: global_batch_size 33 is not divisible"),
        (
            ["--cluster", "local", "--partition", "gpu"],
            "--partition is for Slurm, and this launch would use",
        ),
        (["--recipe", "tiny"], "--recipe is given twice"),
        (
            ["--cluster", "slurm", "--dry-run", "--container-image", "a.sqsh", "--train.data.shards", "/data/shards"],
            "--train.data.shards /data/shards is not seen in the container",
        ),
        (["--registered-name", "toys/digits"], "--registered-name 'toys/digits' cannot name a model in MLflow"),
        (["--train.cuda-graphs"], "--train.cuda-graphs needs GPUs: this machine has none"),
        (["--train.memory-snapshot"], "--train.memory-snapshot needs GPUs: this machine has none"),
        (["--train.model.backend", "triton"], "--train.model.backend triton needs GPUs: this machine has none"),
        (["--train.micro-batch-size", "1"], "micro_batch_size 1: the norm in IDConv"),
        (["--resume", "runs/x"], "there is no --resume: the same --run-dir, given again, resumes that run"),
        (["--gres=gpu:8"], "there is no --gres: --gpus-per-node is"),
        (["--gpus", "8"], "there is no --gpus: --gpus-per-node is"),
        (["--time", "4:00:00"], "there is no --time: --timeout-min is"),
        (["--mem", "64G"], "there is no --mem: --mem-gb is"),
        (["--train.num_classes", "10"], "there is no --train.num_classes: the classes are those of the shards"),
        (["--slurm", "exclusive"], "--slurm exclusive: write it as KEY=VALUE"),
        (["--train.initialise-from", "gone.safetensors"], "/gone.safetensors does not exist"),
        (["--train.initialise-from", "models:/gone@champion"], "models:/gone@champion: there is no registry at"),
    ],
)
def test_an_invalid_launch_is_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--recipe", "demo", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_how_the_micro_batch_is_found_and_a_launch_takes_the_one_that_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    launch = ["--recipe", "demo", "--cluster", "local", "--run-dir", "run", "--train.micro-batch-size", "auto"]
    launch += ["--train.global-batch-size", "48", "--dry-run", "--tasks-per-node"]
    assert main([*launch, "2"]) == 0
    shown = capsys.readouterr().out
    assert "# micro-batch: auto: the largest of 2, 3, 4, 6, 8, 12, 24 that fits into the memory of every GPU" in shown
    assert '"train_micro_batch_size_per_gpu": 24,' in shown
    assert '"micro_batch_size": "auto",' in shown
    # As the first attempt of the run leaves it.
    Path("run").mkdir()
    write_micro_batch(Path("run"), FoundMicroBatch(micro_batch_size=6, world_size=2, decided_by="rank 1 on n2, a GPU"))
    assert main([*launch, "2"]) == 0
    shown = capsys.readouterr().out
    assert "# micro-batch: 6 (found in the memory of rank 1 on n2, a GPU), kept for the run" in shown
    assert '"train_micro_batch_size_per_gpu": 6,' in shown
    assert main([*launch, "3"]) == 2
    said = capsys.readouterr().err
    assert "global_batch_size 48 is not divisible by micro_batch_size 6 x world_size 3" in said
    assert (
        "--train.micro-batch-size 4 would fit (this micro-batch was found on 2 ranks at the run's first start" in said
    )
    assert said.count("\n") == 1
    Path("run/micro_batch.json").write_text("{", encoding="utf-8")
    assert main([*launch, "2"]) == 2
    assert "run/micro_batch.json is damaged: restore it, or remove it" in capsys.readouterr().err


@pytest.mark.thorough
def test_weights_of_another_network_or_not_whole_are_refused_before_anything_is_queued(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = transxnet.transxnet_t(image_size=32, num_classes=3).state_dict()
    torch.save(transxnet.to_upstream(tiny), "transxnet_t.pth")
    nano = transxnet.transxnet_n(image_size=32, num_classes=3).state_dict()
    torch.save({"state_dict": transxnet.to_upstream(nano)}, "transxnet_n.pth")
    Path("cut.pth").write_bytes(Path("transxnet_n.pth").read_bytes()[:-10000])
    Path("weights.h5").write_text("x", encoding="utf-8")
    Path("unfinished").mkdir()
    before = sorted(tmp_path.iterdir())
    for flags, words in {
        ("transxnet_t.pth",): "transxnet_t.pth: weights of transxnet_t, and this run trains transxnet_n",
        ("cut.pth",): "cut.pth is not whole",
        ("weights.h5",): "weights.h5 is not a file of weights: its name ends in none of .safetensors, .pth",
        ("unfinished",): "unfinished/export/model.safetensors does not exist; a training writes it when it ends",
        ("transxnet_n.pth", "--train.initialise-entry", "ema"): "it has no weights 'ema': it has state_dict",
    }.items():
        for dry_run in ([], ["--dry-run"]):
            assert main(["--recipe", "demo", "--run-dir", "run", "--train.initialise-from", *flags, *dry_run]) == 2
            said = capsys.readouterr().err
            assert words in said
            assert said.count("\n") == 1
    assert (
        main(["--recipe", "demo", "--dry-run", "--run-dir", "run", "--train.initialise-from", "transxnet_n.pth"]) == 0
    )
    assert main(["--recipe", "demo", "--train.initialise-entry", "ema"]) == 2
    assert "--train.initialise-from, which is not given" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_registered_run_without_an_alias_is_named_by_its_version(tmp_path):
    prepare(tmp_path, TrainConfig(), {"tracking_uri": "sqlite:///runs/mlflow.db"})
    version = {"name": "transxnet_n", "version": "3", "aliases": []}
    (tmp_path / "registered.json").write_text(json.dumps(version))
    words = describe_end(tmp_path, Outcome.FINISHED)
    assert "models:/transxnet_n/3 (no alias)" in words
    assert 'load_model("models:/transxnet_n/3")' in words


def test_after_a_launch_by_uv_the_next_commands_are_typed_with_uv(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    prepare(tmp_path, TrainConfig(), {"tracking_uri": "sqlite:////a/mlflow.db"})
    (tmp_path / "registered.json").write_text(json.dumps({"name": "m", "version": "3", "aliases": ["champion"]}))

    def commands() -> list[str]:
        words = describe_end(tmp_path, Outcome.FINISHED)
        return [line[:18] for line in words.splitlines() if line.startswith("    ") and " --run-dir" not in line]

    assert commands() == ["    mlflow ui --ba", "    python -m pipe", "    python -c 'imp"]
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert commands() == ["    uv run mlflow ", "    uv run python ", "    uv run python "]
    # After Ctrl-C the training goes on, and one follows it again.
    assert f"\n    uv run python -m pipeline.status {tmp_path} --watch\n" in describe_end(tmp_path, Outcome.DETACHED)
    assert as_typed("follow it: python -m pipeline.status x") == "follow it: uv run python -m pipeline.status x"


def test_half_precision_on_cpus_without_it_is_told(tmp_path, monkeypatch):
    cpus = tmp_path / "cpuinfo"
    monkeypatch.setattr("pipeline.launch.place_checks.CPUS", cpus)
    monkeypatch.setattr("pipeline.launch.place_checks.query_gpus", lambda _: [])
    cpus.write_text("flags\t\t: fpu avx2 avx512f\n")
    [warning] = describe_slow_precision(TrainConfig(), Resources(), "local")
    assert "no bf16 operations: --train.precision fp32" in warning
    assert not describe_slow_precision(TrainConfig(precision="fp32"), Resources(), "local")
    assert not describe_slow_precision(TrainConfig(), Resources(gpus_per_node=1), "local")
    assert not describe_slow_precision(TrainConfig(), Resources(), "slurm")
    cpus.write_text("flags\t\t: fpu avx2 avx512f amx_bf16\n")
    assert not describe_slow_precision(TrainConfig(), Resources(), "local")


def test_a_registry_of_its_own_is_named(tmp_path, monkeypatch):
    prepare(tmp_path, TrainConfig(), {"tracking_uri": "sqlite:////a/mlflow.db"})
    version = {"name": "transxnet_n", "version": "3", "aliases": ["champion"]}
    (tmp_path / "registered.json").write_text(json.dumps(version))
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:////b/registry.db")
    words = describe_end(tmp_path, Outcome.FINISHED)
    assert "registry  sqlite:////b/registry.db (MLFLOW_REGISTRY_URI)\n" in words
    assert 'uri("sqlite:////a/mlflow.db"); mlflow.set_registry_uri("sqlite:////b/registry.db"); model = ' in words
    assert "--backend-store-uri sqlite:////a/mlflow.db --registry-store-uri sqlite:////b/registry.db\n" in words


def test_a_run_keeps_its_registered_name(tmp_path):
    pack(tmp_path / "shards", (17, 9))
    pack(tmp_path / "shards", (5,), split="validation")

    def prepared(*flags: str) -> str | None:
        words = ["--cluster", "debug", "--run-dir", f"{tmp_path}/run", "--train.data.shards", f"{tmp_path}/shards"]
        plan = build_plan(parse([*words, *flags]))
        prepare_run(plan, plan.runs[0])
        return read_config(tmp_path / "run").registered_name

    assert prepared() is None
    assert prepared("--registered-name", "toy") == "toy"
    assert prepared() == "toy"
    (tmp_path / "run/registered.json").write_text('{"name": "toy"}')
    assert prepared("--registered-name", "toy") == "toy"
    with pytest.raises(LaunchError, match=r"is registered as toy already; .* --registered-name pets$"):
        prepared("--registered-name", "pets")


def test_the_configuration_says_which_result_the_recipe_aims_at_and_what_differs():
    def aim(*flags: str) -> dict:
        plan = build_plan(parse(["--cluster", "slurm", "--dry-run", *flags]))
        return plan.run_facts(plan.runs[0].config)["published"]

    cluster = ["--nodes", "2", "--gpus-per-node", "4"]
    always = "every image is read once an epoch, and a step may span two epochs; upstream drops an epoch's last samples"
    drawn = "crops and RandAugment are drawn from timm's distributions, but computed by OpenCV instead of Pillow"
    every_step = "the learning rate changes every step instead of every epoch"
    tiny = aim("--recipe", "tiny", *cluster)
    assert "81.6 % top-1" in tiny["result"]
    assert tiny["value"] == 0.816
    assert tiny["differences"] == ["bf16 instead of fp16", every_step, drawn, always]
    as_upstream = ["--train.precision", "fp16", "--train.schedule.per", "epoch", "--train.augment.mode", "faithful"]
    assert aim("--recipe", "small", *cluster, *as_upstream)["differences"] == [always]
    fewer = aim("--recipe", "base", "--gpus-per-node", "2", "--train.optimizer.lr", "1e-3", "--train.seed", "3")
    assert fewer["differences"][1] == "BatchNorm statistics over 256 samples instead of 1,024"
    assert fewer["differences"][-1] == "optimizer.lr 0.001 instead of 0.002"
    alone = aim("--recipe", "base", "--gpus-per-node", "1", "--train.global-batch-size", "512")
    assert alone["differences"][1:3] == [
        "512 samples a step instead of 1,024", "BatchNorm statistics over 128 samples instead of 1,024",
    ]  # fmt: skip
    fine = aim("--recipe", "base_384", "--gpus-per-node", "8", "--train.initialise-from", "runs/base")["differences"]
    assert fine == ["the values of the fine-tuning at 384 px are the field's usual ones: the paper publishes none"]
    assert aim("--recipe", "demo", "--tasks-per-node", "2") is None


@pytest.mark.parametrize(
    ("cluster", "address", "is_warned"),
    [
        ("slurm", "http://127.0.0.1:5000", True),
        ("slurm", "http://user:secret@localhost:5000", True),
        ("slurm", "http://login:5000", False),
        ("local", "http://localhost:5000", False),
    ],
)
def test_a_server_that_only_this_machine_reaches_is_warned_of_under_slurm(
    monkeypatch, capsys, cluster, address, is_warned
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    check_tracking(cluster)
    warning = capsys.readouterr().err
    assert ("which leads each node to itself" in warning) == is_warned
    assert "secret" not in warning


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_an_address_that_mlflow_cannot_open_is_refused(variable, monkeypatch):
    for uri, words in (
        ("localhost:5000", "is not an MLflow address"),
        ("htp://host/x", "is not an MLflow address"),
        ("http:///x", "names no host"),
        ("file:///x", "is a folder, and MLflow has put its file store into maintenance mode"),
        ("/x", "is a folder, and MLflow has put its file store into maintenance mode"),
        ("sqlite://my.db", "three slashes before a relative path and four before /"),
        ("sqlite:///:memory:", "is not a file"),
        ("mysql://bob:pw@host/db", "needs the package MySQLdb, which is not installed here"),
    ):
        monkeypatch.setenv(variable, uri)
        with pytest.raises(InputError) as refused:
            check_tracking("local")
        assert words in str(refused.value)
        assert str(refused.value).startswith(f"{variable} ")
        assert "write http://HOST:PORT, sqlite:////PATH/mlflow.db or postgresql://" in str(refused.value)
        assert "pw@" not in str(refused.value)
    for uri in ("", "http://host:5000", "https://bob:pw@host/x", "sqlite:////y.db", "postgresql+psycopg2://h/d"):
        monkeypatch.setenv(variable, uri)
        check_tracking("local")


def test_python_without_docstrings_is_refused_before_tracking_is_lost(tmp_path):
    command = [sys.executable, "-m", "pipeline.launch", "--recipe", "demo", "--run-dir", f"{tmp_path}/run"]
    environment = {**os.environ, "PYTHONOPTIMIZE": "2", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: PYTHONOPTIMIZE=2 ")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_fails_where_a_launch_would_and_writes_nothing(tmp_path, monkeypatch, capsys):
    work, shards = tmp_path / "work", tmp_path / "shards"
    work.mkdir()
    monkeypatch.chdir(work)
    flags = ["--cluster", "local", "--dry-run", "--run-dir", "run", "--train.data.shards", str(shards)]
    assert main(flags) == 0
    assert "warning: a launch from here would be refused: no shards at" in capsys.readouterr().err
    pack(shards, (17, 9))
    pack(shards, (5,), split="validation")
    flags += ["--train.steps", "3"]
    assert main(flags) == 0
    assert "# data: 26 training and 5 validation images of 5 classes (a model of 5 classes is trained); 3 steps\n" in (
        capsys.readouterr().out
    )
    assert not list(work.iterdir())
    prepare(work / "run", TrainConfig(steps=4), {})
    before = (work / "run/config.json").read_bytes()
    assert main(flags) == 2
    assert "belongs to another training:\n  steps: 4 -> 3\n" in capsys.readouterr().err
    assert main([flag for flag in flags if flag != "--dry-run"]) == 2
    assert "belongs to another training:\n  steps: 4 -> 3\n" in capsys.readouterr().err
    assert main([*flags, "--sweep", "train.seed=1,2"]) == 2
    assert "is the folder of a run, not of a sweep" in capsys.readouterr().err
    min(shards.glob("*.tar")).unlink()
    assert main(flags) == 2
    assert "is missing: python -m sharding.verify" in capsys.readouterr().err
    assert main(["--recipe", "demo", "--dry-run"]) == 0
    assert "# data: the handwritten digits, which the launch packs" in capsys.readouterr().out
    assert [path.name for path in work.rglob("*")] == ["run", "config.json"]
    assert (work / "run/config.json").read_bytes() == before


def test_a_recipe_never_writes_where_the_users_data_lie(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "runs/digits"):
        pack(tmp_path / folder, (17, 9))
        pack(tmp_path / folder, (5,), split="validation")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    demo = ["--recipe", "demo", "--cluster", "debug", "--run-dir", "run"]

    plan = build_plan(parse([*demo, "--train.data.shards", "mine"]))
    assert prepare_run(plan, plan.runs[0]).dataset.num_samples == 26
    assert not (tmp_path / "mine/digits-train.json").exists()
    assert main(demo) == 2
    assert "not packed into " in (error := capsys.readouterr().err)
    assert "runs/digits, which holds small-train-0000.tar: move it" in error
    assert main([*demo, "--train.data.shards", "empty"]) == 2
    assert f"no shards at '{tmp_path}/empty'" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "runs", "run"}


def test_of_several_data_sets_in_a_folder_the_named_one_is_trained_on(tmp_path):
    for name in ("small", "pets"):
        pack(tmp_path, (17, 9), name=name)
        pack(tmp_path, (5,), split="validation", name=name)
    with pytest.raises(
        ShardingError, match=r"of several data sets \(pets, small\): name one of them \(--train.data.name"
    ):
        check_shards(config(tmp_path, tmp_path / "cache"))
    named = config(tmp_path, tmp_path / "cache", data={"name": "small"})
    assert check_shards(named).digest == load_manifest(str(tmp_path), "train", "small").digest
    split = open_split(str(tmp_path), "validation", named.data)
    assert split.manifest.stem == "small-validation"


@pytest.mark.slow
def test_unreachable_storage_is_one_line(tmp_path, capsys):
    shards = "s3://key:word@bucket/shards?endpoint_override=127.0.0.1:1&scheme=http"
    assert main(["--cluster", "local", "--run-dir", f"{tmp_path}/run", "--train.data.shards", shards]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the shards at s3://")
    assert error.count("\n") == 1
    assert ":word@" not in error


@pytest.mark.parametrize(
    ("recipe", "source"),
    [("tiny", "ImageNet, or a folder of"), ("ade20k_tiny", "ADE20K"), ("coco_retinanet_tiny", "COCO")],
)
def test_what_to_pack_is_named_for_the_task(tmp_path, recipe, source):
    train = RECIPES[recipe].train()
    for location in (tmp_path, tmp_path / "none"):
        training = dataclasses.replace(train, data=dataclasses.replace(train.data, shards=str(location)))
        with pytest.raises(
            LaunchError,
            match=rf"sharding\.build --source IMAGES --output {location} --split train \(IMAGES: .*{source}",
        ):
            check_shards(training)


def test_shards_that_are_not_whole_are_refused_before_anything_is_queued(tmp_path):
    pack(tmp_path, (17, 9))
    pack(tmp_path, (5,), split="validation")
    training = config(tmp_path, tmp_path / "cache")
    assert check_shards(training).num_samples == 26
    assert not check_shards(training).is_its_own_validation
    other = dataclasses.replace(training, data=dataclasses.replace(training.data, validation_split="val"))
    with pytest.raises(LaunchError, match=r"manifests there: .*sharding\.build .*--split val \(.*--train\.data\.valid"):
        check_shards(other)
    shard = sorted(tmp_path.glob("*train*.tar"))[1]
    os.truncate(shard, 3000)
    with pytest.raises(LaunchError, match=rf"shard {shard.name} of .* has 3,000 bytes instead of .* sharding.verify"):
        check_shards(training)
    shard.unlink()
    with pytest.raises(LaunchError, match=rf"shard {shard.name} of .* is missing: "):
        check_shards(training)
    check_shards(dataclasses.replace(training, data=dataclasses.replace(training.data, on_damage="replace")))
