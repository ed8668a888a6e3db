"""The served model: which inputs it takes, in process and over HTTP."""

import base64
import dataclasses
import io
import json
import os
import subprocess
import sys
import textwrap
import types
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image

from pipeline.augment.transforms import evaluation_pixels
from pipeline.register.mlflow_model import save_model
from pipeline.register.registration import register
from pipeline.serve import ServedClassifier
from pipeline.tracking.client import resolve_tracking_uri
from pipeline.weights.card import EXPORT_FOLDER, Preprocessing
from tests.support.tracking_runs import finished_run, validation_images
from tests.support.tracking_servers import answers, free_port, wait_for


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def card(home, digits):
    return finished_run(home / "runs/first", digits, resolve_tracking_uri(home))


@pytest.fixture(scope="module")
def classifier(home, card):
    loaded = ServedClassifier()
    folder = home / "runs/first" / EXPORT_FOLDER
    artifacts = {"card": str(folder / "model.json"), "weights": str(folder / "model.safetensors")}
    loaded.load_context(types.SimpleNamespace(artifacts=artifacts))
    return loaded


@pytest.fixture(scope="module")
def loaded(home, card):
    """The model as MLflow loads it, through everything that its `predict` and its server do before ours."""
    folder = home / "saved"
    folder.mkdir()
    return mlflow.pyfunc.load_model(str(save_model(folder, home / "runs/first" / EXPORT_FOLDER, card, Model())))


def texts(content: bytes) -> list[str]:
    """The base64 of an image as different tools write it."""
    text = base64.b64encode(content).decode()
    url_safe = base64.urlsafe_b64encode(content).decode()
    forms = [text, f"{text}\n", base64.encodebytes(content).decode(), text.rstrip("="), url_safe, url_safe.rstrip("=")]
    forms += [textwrap.fill(text, 76).replace("\n", "\r\n"), f"data:image/png;base64,{text}", f"DATA:;base64,{text}"]
    return [*forms, f"data:image/png;base64,{quote(text, safe='')}"]


def test_every_form_of_an_image_gives_the_same_answer(classifier, loaded, digits, tmp_path):
    # The bytes of both letters that differ in the URL-safe alphabet, and a length that needs padding.
    content = next(c for c, _ in validation_images(digits, 64) if {*"-_="} <= {*base64.urlsafe_b64encode(c).decode()})
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    image = Image.open(io.BytesIO(content))
    pixels, gray = np.asarray(image.convert("RGB")), np.asarray(image.convert("L"))
    text = base64.b64encode(content).decode()
    forms = [content, [content], text.encode(), str(path), path, [path], pixels, pixels[None], [pixels], image, [image]]
    forms += [gray, gray[:, :, None], [gray], gray[None], image.convert("RGBA"), {"image": [pixels]}, {"image": pixels}]
    forms += [pd.DataFrame({"image": [content]}), pd.Series([pixels]), {"image": [text]}, bytearray(content)]
    forms += texts(content)
    wnids = {classifier.predict(None, form)["wnid"][0] for form in forms}
    assert len(wnids) == 1
    assert {loaded.predict(form)["wnid"][0] for form in forms} == wnids
    assert len(loaded.predict([pixels, gray, path, content, *texts(content)])) == 4 + len(texts(content))
    many = classifier.predict(None, [content] * 40)
    assert len(many) == 40
    assert many["top5"][39][0]["wnid"] == wnids.pop()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"no image at all, but long enough", "not an image in any of the formats JPEG, PNG"),
        ("/nowhere/photo.jpg", "there is no file '/nowhere/photo.jpg'"),
        (np.zeros((4, 4), np.float32), "pixels are float32 (4, 4), uint8 [H, W, 3] or [H, W] was expected"),
        (17, "int given; bytes, base64 text, a path, an image of Pillow or a uint8 array was expected"),
        ("A" * 10_000, "is neither a path nor the base64 of an image"),
    ],
)
def test_an_input_that_is_no_image_is_named_by_its_position(classifier, digits, bad, words):
    content, _ = validation_images(digits, 1)[0]
    with pytest.raises(ValueError, match=r"^input 1 is not an image: ") as caught:
        classifier.classify([content, bad])
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": ["A" * 10_000]}, "input 0 is not an image: text over HTTP must be the base64 of an image file"),
        ({"inputs": ["/etc/passwd"]}, "input 0 is not an image: text over HTTP must be the base64 of an image file"),
        ({"inputs": [17]}, "input 0 is not an image: int64 given; "),
        ({"inputs": {"a": ["x"], "b": ["y"]}}, "one list of images is expected, the input has 2: a, b"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [["x", "y"]]}}, "one column of images is expected"),
    ],
)
def test_a_server_answers_a_wrong_input_with_one_sentence(loaded, body, words, monkeypatch):
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(MlflowException) as refused:
        invocations(json.dumps(body), "application/json", loaded, loaded.metadata.get_input_schema())
    assert refused.value.get_http_status_code() == 400
    answer = json.loads(refused.value.serialize_as_json())["message"]
    assert answer.startswith(words)
    assert len(answer) < 200


def test_a_server_takes_base64_in_every_form(loaded, digits, monkeypatch):
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    content, _ = validation_images(digits, 1)[0]
    rows = [[text] for text in texts(content)]
    for body in ({"inputs": texts(content)}, {"dataframe_split": {"columns": ["image"], "data": rows}}):
        answer = invocations(json.dumps(body), "application/json", loaded, loaded.metadata.get_input_schema())
        assert answer.status == 200
        predictions = json.loads(answer.response)["predictions"]
        assert len(predictions) == len(rows)
        assert len({row["wnid"] for row in predictions}) == 1


def test_a_server_reads_no_local_files_for_clients(classifier, tmp_path, monkeypatch):
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (8, 8)).save(secret)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(ValueError, match="text over HTTP must be the base64"):
        classifier.classify([str(secret)])


@pytest.mark.parametrize("size", [(500, 375), (31, 64), (640, 33), (224, 224)])
def test_the_served_model_preprocesses_images_as_the_evaluation_does(classifier, card, size):
    """The recorded accuracy was measured through the loader; another resize or crop would be another model."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    settings = Preprocessing(evaluation_crop=0.9, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    prepared = ServedClassifier()
    prepared.card = dataclasses.asdict(dataclasses.replace(card, image_size=96, preprocessing=settings))
    served = prepared._prepare(file.getvalue(), 0).numpy() * 255
    evaluated = np.asarray(evaluation_pixels(file.getvalue(), 96, 0.9)).astype(np.float32)
    evaluated = evaluated.transpose(2, 0, 1) if evaluated.shape[-1] == 3 else evaluated
    assert served.shape == evaluated.shape == (3, 96, 96)
    # JPEG decoders may differ by a grey level or two.
    assert np.abs(served - evaluated).mean() < 1.0
    assert np.abs(served - evaluated).max() <= 12


@pytest.mark.slow
def test_the_served_model_answers_over_http_with_the_five_best(home, digits, card, tmp_path):
    uri = resolve_tracking_uri(home)
    version = register(home / "runs/first")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", version.uri, "--env-manager", "local"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # `mlflow models serve` looks for uvicorn beside the interpreter.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([*command, "--port", str(port)], cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}/ping"), 120)
        assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
        content, _ = validation_images(digits, 1)[0]
        text = base64.b64encode(content).decode()
        expected = None
        for body in (
            {"dataframe_split": {"columns": ["image"], "data": [[text]]}},
            {"dataframe_records": [{"image": text}]},
            {"inputs": [text]},
        ):
            answer = post(f"http://127.0.0.1:{port}/invocations", body)["predictions"][0]
            assert len(answer["top5"]) == 5
            assert answer["top5"][0]["class_name"] == answer["class_name"]
            assert expected in (None, answer["wnid"])
            expected = answer["wnid"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"http://127.0.0.1:{port}/invocations", {"inputs": [str(home / "runs/first/config.json")]})
        assert refused.value.code == 400
        said = json.loads(refused.value.read())["message"]
        assert said == "input 0 is not an image: text over HTTP must be the base64 of an image file"
    finally:
        server.terminate()
        server.wait(30)


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())
