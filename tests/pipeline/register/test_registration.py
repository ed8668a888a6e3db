"""Registration: the model is verified in a clean process, loads without this repository, and gets its aliases."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.evaluate.command import main
from pipeline.evaluate.measure import evaluate
from pipeline.launch.checks import check_weights
from pipeline.launch.options import LaunchError, parse
from pipeline.launch.plan import build_plan
from pipeline.register import verify
from pipeline.register.best import best_weights
from pipeline.register.registration import register
from pipeline.register.verify import tolerance
from pipeline.run.config import RunConfig
from pipeline.run.status import read_status
from pipeline.status.show import format_run
from pipeline.tracking.client import TrackingError, open_client, resolve_tracking_uri
from pipeline.tracking.description import model_inputs
from pipeline.tracking.state import TrackingState, load_state, save_state
from pipeline.weights.card import ModelCardError, load_model_card, save_model_card
from pipeline.weights.load import load_model
from pipeline.weights.teacher import load_teacher
from tests.support import REPOSITORY
from tests.support.tracking_runs import digits_network, finished_run, new_store, validation_images


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Send the clean process the signals of a preemption; yields the ids of the processes that got them."""
    told: list[int] = []
    over = threading.Event()

    def tell() -> None:
        while not over.wait(0.25):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if child.pid not in told and any("clean_process" in word for word in child.cmdline()):
                        child.send_signal(signal.SIGUSR2)
                        child.terminate()
                        told.append(child.pid)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    yield told
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What the clean process of `registered` answered: the WordNet id of each image file."""
    return {}


@pytest.fixture(scope="module")
def registered(home, digits, answers):
    """The card of the expected model and the registered version of a run that was better at step 20 than at its end.

    Its job is preempted during the registration.
    """
    last = finished_run(home / "runs/first", digits, new_store(home), best_step=20)
    best = digits_network(digits)[1]
    assert best.top1 > last.scores["top1"]
    classify = verify._classify
    with pytest.MonkeyPatch.context() as patch, asked_to_stop() as told:
        patch.setattr(verify, "_classify", lambda *arguments: answers.update(classify(*arguments)) or answers)
        version = register(home / "runs/first")
    assert told
    return dataclasses.replace(last, step=20, scores=best.scores()), version


def in_clean_process(program: str, folder: Path, uri: str) -> dict:
    """Run a program in another folder, without this repository on the path; its last line of output is JSON."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "UserWarning" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_best_checkpoint_is_verified_latest_and_champion(home, registered):
    card, version = registered
    assert (version.step, version.metric) == (20, card.metric)
    assert version.version == "1"
    assert version.aliases == ("latest", "champion")
    assert version.uri == "models:/transxnet_n@champion"
    assert json.loads((home / "runs/first/registered.json").read_text())["version"] == "1"
    client = open_client(resolve_tracking_uri(home))
    stored = client.get_model_version("transxnet_n", "1")
    assert (stored.tags["step"], float(stored.tags["top1"])) == ("20", card.scores["top1"])
    assert stored.tags["validation_digest"] == card.validation_digest
    assert "images in a clean process" in stored.tags["verified"]
    assert f"{100 * card.scores['top1']:.2f} %" in stored.description
    assert f'mlflow.set_tracking_uri("{resolve_tracking_uri(home)}")' in stored.description
    # The checkpoints are models of the MLflow run without a copy; the registered model has its metrics.
    run = client.get_run(stored.run_id)
    assert card.validation_digest[:32] in {entry.dataset.digest for entry in run.inputs.dataset_inputs}
    models = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
    assert {model.name for model in models} == {"step_00000020", "step_00000030", "transxnet_n"}
    assert {m.value for model in models for m in model.metrics or [] if m.key == "eval/top1" and m.step == 20} == {
        card.scores["top1"]
    }
    files = [path for path in (home / "runs/mlartifacts").rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix in (".safetensors", ".pkl", ".pickle", ".pth", ".bin")] == [
        "model.safetensors"
    ]
    model = next(path.parent for path in files if path.name == "MLmodel")
    assert "signature:" in (model / "MLmodel").read_text()
    assert {"serve.py", "input_example.json", "requirements.txt"} <= {path.name for path in model.iterdir()}
    required = (model / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in required} >= {"mlflow", "torch", "safetensors"}
    assert all("==" in line for line in required)


@pytest.mark.parametrize("version", ["1", "99"])
def test_a_run_that_begins_from_a_version_has_its_model_among_its_inputs(home, registered, version):
    client = open_client(resolve_tracking_uri(home))
    began = RunConfig(home / "config.json", {"train": {"initialise_from": f"models:/transxnet_n/{version}"}})
    models = [client.get_logged_model(entry.model_id) for entry in model_inputs(client, began)]
    assert [(model.name, model.source_run_id) for model in models] == (
        [("transxnet_n", load_state(home / "runs/first").run_id)] if version == "1" else []
    )


def test_a_damaged_best_checkpoint_is_skipped(home, registered, tmp_path, caplog):
    shutil.copytree(home / "runs/first", tmp_path / "run")
    damaged = tmp_path / "run/checkpoints/step_00000020/rank_00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    folder, card = best_weights(tmp_path / "run")
    assert (folder, card.step) == (tmp_path / "run/export", 30)
    assert "the best checkpoint (step 20) is not registered" in caplog.text


@pytest.mark.thorough
def test_a_registered_model_loads_elsewhere_in_three_ways_with_the_recorded_top1(home, digits, registered, tmp_path):
    card, version = registered
    images = validation_images(digits, 100)
    for k, (content, _) in enumerate(images):
        (tmp_path / f"{k:03d}.jpg").write_bytes(content)
    program = f"""
        import io, json, sys
        from pathlib import Path
        import torch, transxnet
        last = transxnet.transxnet_n(pretrained={str(home / "runs/first")!r})
        alone = "mlflow" not in sys.modules
        same_network = transxnet.transxnet_n(pretrained={version.uri!r}).eval()
        own = transxnet.__file__
        for name in [name for name in sys.modules if name.split(".")[0] == "transxnet"]:
            del sys.modules[name]
        import mlflow, numpy as np, pandas as pd
        from PIL import Image
        model = mlflow.pyfunc.load_model({version.uri!r})
        files = sorted(Path({str(tmp_path)!r}).glob("*.jpg"))
        table = model.predict([file.read_bytes() for file in files])
        frame = model.predict(pd.DataFrame({{"image": [file.read_bytes() for file in files[:2]]}}))
        paths = model.predict([str(file) for file in files[:2]])
        arrays = model.predict({{"image": [np.asarray(Image.open(file).convert("RGB")) for file in files[:2]]}})
        single = model.predict(files[0].read_bytes())
        same = all(list(t["wnid"]) == list(table["wnid"][: len(t)]) for t in (frame, paths, arrays, single))
        network = model.unwrap_python_model().network
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            equal = torch.equal(network(pixels), same_network(pixels))
        print(json.dumps({{
            "wnids": list(table["wnid"]), "same": same, "best": table["top5"][0], "columns": list(table.columns),
            "code": sys.modules["transxnet"].__file__, "alone": alone, "equal": equal, "own": own,
            "bias": [n.classifier.linear.bias[0].item() for n in (last, same_network)],
        }}))
    """
    answer = in_clean_process(program, tmp_path / "elsewhere", resolve_tracking_uri(home))
    assert answer["same"]
    assert answer["equal"]
    # Loading from a run directory gives the last weights, whose first class is never predicted, without MLflow.
    assert answer["alone"]
    assert answer["bias"][1] - answer["bias"][0] == pytest.approx(1000)
    assert answer["own"] != answer["code"]
    assert answer["columns"] == ["class_name", "wnid", "probability", "top5"]
    assert len(answer["best"]) == 5
    assert sum(best["probability"] for best in answer["best"]) <= 1.0 + 1e-6
    assert not answer["code"].startswith(str(REPOSITORY))
    right = sum(wnid == truth for wnid, (_, truth) in zip(answer["wnids"], images, strict=True))
    assert abs(right / 100 - card.scores["top1"]) <= tolerance(card, 100)


def test_registering_again_gives_the_same_version_and_sets_the_alias(home, registered):
    again = register(home / "runs/first", alias="production")
    assert again.version == registered[1].version
    assert "production" in again.aliases


@pytest.mark.thorough
def test_a_registered_name_of_its_own_leaves_the_default_model_alone(home, registered):
    shutil.copytree(home / "runs/first", home / "runs/toy")
    config = json.loads((home / "runs/toy/config.json").read_text())
    # Without validation images the model is not verified, which saves time; the other tests verify.
    config["train"]["data"]["shards"] = "gone"
    (home / "runs/toy/config.json").write_text(json.dumps(config | {"registered_name": "toy of mine"}))
    version = register(home / "runs/toy", alias="favourite")
    assert (version.name, version.uri, version.aliases) == (
        "toy of mine",
        "models:/toy of mine/1",
        ("latest", "favourite"),
    )
    client = open_client(resolve_tracking_uri(home))
    assert "models:/toy of mine@champion" in client.get_model_version("toy of mine", "1").description
    assert {str(v.version) for v in client.search_model_versions("name = 'transxnet_n'")} == {"1"}
    for alias, name in ((None, "toys/digits"), ("my best", None), ("v2", None)):
        with pytest.raises(ValueError, match="MLflow"):
            register(home / "runs/toy", alias, name)


@pytest.mark.thorough
def test_a_registered_version_teaches_and_is_named_by_whom_it_taught(home, registered, tmp_path, monkeypatch):
    uri = resolve_tracking_uri(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    plan = build_plan(parse(["--recipe", "demo", "--train.distill", "models:/transxnet_n@champion"]))
    # An alias may move: the run keeps the number.
    assert plan.runs[0].config.distill == "models:/transxnet_n/1"
    card = registered[0]
    teacher = load_teacher("models:/transxnet_n/1", [wnid for wnid, _ in card.classes], 32)
    assert teacher.num_classes == card.num_classes

    shutil.copytree(home / "runs/first", home / "runs/learned")
    config = json.loads((home / "runs/learned/config.json").read_text())
    config["train"] |= {"distill": "models:/transxnet_n/1", "data": config["train"]["data"] | {"shards": "gone"}}
    (home / "runs/learned/config.json").write_text(json.dumps(config | {"registered_name": "taught"}))
    register(home / "runs/learned")
    client = open_client(uri)
    stored = client.get_model_version("taught", "1")
    assert stored.tags["distilled_from"] == "models:/transxnet_n/1"
    assert "| learned from&emsp; | models:/transxnet_n/1 |" in stored.description
    run = client.get_run(load_state(home / "runs/learned").run_id)
    assert run.data.tags["distilled_from"] == "models:/transxnet_n/1"
    [given] = run.inputs.model_inputs
    assert client.get_logged_model(given.model_id).source_run_id == load_state(home / "runs/first").run_id


@pytest.mark.parametrize("process", ["recorded answers", pytest.param("clean process", marks=pytest.mark.slow)])
def test_a_model_below_its_recorded_accuracy_is_not_registered(
    home, digits, registered, answers, process, monkeypatch, tmp_path
):
    """With classes in another order the model loads and answers, and the answers are wrong."""
    card = finished_run(tmp_path / "wrong", digits, resolve_tracking_uri(home))
    wrong = dataclasses.replace(card, classes=tuple(reversed(card.classes)))
    save_model_card(wrong, tmp_path / "wrong/export")
    if process == "recorded answers":
        # The weights and outputs are those of `registered`; an output stands for another class.
        names = [wnid for wnid, _ in card.classes]
        other = dict(zip(names, reversed(names), strict=True))
        monkeypatch.setattr(verify, "_classify", lambda *_: {file: other[wnid] for file, wnid in answers.items()})
    with pytest.raises(TrackingError, match=r"right, but its recorded top-1 is 0\.\d+: it was not registered"):
        register(tmp_path / "wrong")
    client = open_client(resolve_tracking_uri(home))
    assert {str(v.version) for v in client.search_model_versions("name = 'transxnet_n'")} == {"1"}


def test_a_run_that_exported_nothing_is_refused(home, registered, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="is no run directory"):
        register(run)
    (run / "config.json").write_text((home / "runs/first/config.json").read_text())
    with pytest.raises(ModelCardError, match=r"model\.json is missing: the training writes it when it ends"):
        register(run)


def test_a_registered_model_of_another_variant_is_refused_at_the_launch(home, registered, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    source = "models:/transxnet_n@champion"
    check_weights(TrainConfig(model=ModelConfig(name="transxnet_n"), initialise_from=source))
    with pytest.raises(LaunchError, match=r"weights of transxnet_n, and this run trains transxnet_t$"):
        check_weights(TrainConfig(model=ModelConfig(name="transxnet_t"), initialise_from=source))


@pytest.mark.thorough
def test_evaluation_reproduces_the_recorded_accuracy_from_every_source(home, digits, registered, monkeypatch, capsys):
    card, _ = registered
    monkeypatch.chdir(home)
    last = load_model_card(home / "runs/first/export")
    for source, expected in [
        ("runs/first", last),
        ("runs/first/export/model.safetensors", last),
        ("models:/transxnet_n@champion", card),
    ]:
        report, _ = evaluate(load_model(source), str(digits), workers=0)
        assert report.scores() == expected.scores | {"loss": report.loss}
        assert report.samples == card.validation_samples
    assert main("models:/transxnet_n@latest", shards=str(digits), workers=0, output=home / "out.json") == 0
    assert f"top-1              {100 * card.scores['top1']:.2f} %" in capsys.readouterr().out
    written = json.loads((home / "out.json").read_text())
    assert sum(entry["samples"] for entry in written["classes"]) == card.validation_samples
    client = open_client(resolve_tracking_uri(home))
    run = client.get_run(client.get_model_version("transxnet_n", "1").run_id)
    assert run.data.metrics["eval/digits-validation/top1"] == card.scores["top1"]
    assert {item.path for item in client.list_artifacts(run.info.run_id, "evaluation/digits-validation")} == {
        f"evaluation/digits-validation/{name}"
        for name in ("classes.csv", "confusions.csv", "pictures.png", "report.json")
    }


@pytest.mark.thorough
def test_a_registration_that_succeeds_sends_all_that_the_server_missed(tmp_path, digits, monkeypatch):
    # The clean process that verifies the model runs in another folder.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    finished_run(tmp_path / "run", digits, None)
    # The server was away when the training ended.
    state = TrackingState(key="k", status="FINISHED", ended_at=1_700_000_100.0, behind_since=1e9, problem="away")
    save_state(tmp_path / "run", state)
    register(tmp_path / "run")
    state = load_state(tmp_path / "run")
    assert (state.sent_status, state.shipped_step, state.behind_since, state.problem) == ("FINISHED", 30, None, "")
    run = open_client(resolve_tracking_uri(tmp_path)).get_run(state.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/top1"] > 0
    shown = "\n".join(format_run(read_status(tmp_path / "run"), time.time()))
    assert "wait" not in shown
    assert "--sync" not in shown
