"""A registered segmentation answers with the label map that the evaluation has counted."""

import base64
import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pipeline.serve
from pipeline.augment.decode import EncodedImage
from pipeline.config.schema import AugmentConfig, SegmentationConfig
from pipeline.tasks import find_task
from pipeline.tasks.normalise import Normalise
from pipeline.tasks.segmentation.augment import evaluation_pixels
from pipeline.tasks.segmentation.evaluation import predict
from pipeline.tasks.segmentation.serve import ImageSegmenter
from pipeline.weights.card import ModelCard, Preprocessing
from tests.support.small_shards import photograph

OPTIONS = SegmentationConfig(scale=(96, 48))
NAMES = ("ground", "thing", "sky")
TASK = find_task("segmentation")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ImageSegmenter:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = TASK.build("semantic_fpn_n", num_classes=len(NAMES), image_size=64).eval()
    torch.nn.init.normal_(network.head.classifier.weight)
    save_file({k: v.contiguous() for k, v in TASK.to_published(network.state_dict()).items()}, folder / "weights")
    augment = AugmentConfig()
    card = ModelCard(
        name="semantic_fpn_n",
        task="segmentation",
        num_classes=len(NAMES),
        image_size=64,
        classes=tuple((str(k), name) for k, name in enumerate(NAMES)),
        preprocessing=Preprocessing(
            evaluation_crop=1.0, mean=augment.mean, std=augment.std, scale=OPTIONS.scale, divisor=OPTIONS.divisor
        ),
        step=1,
        epoch=1.0,
        scores={"miou": 0.5, "aacc": 0.6, "macc": 0.7},
    )
    (folder / "card").write_text(json.dumps(card.to_dict()))
    assert ModelCard.from_dict(card.to_dict()) == replace(card)
    segmenter = ImageSegmenter()
    segmenter.load_context(SimpleNamespace(artifacts={"card": folder / "card", "weights": folder / "weights"}))
    return segmenter


def test_the_label_map_is_the_evaluations(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "serve", pipeline.serve)
    encoded = [photograph(number) for number in (1, 2)]
    sent = [encoded[0], base64.b64encode(encoded[1]).decode()]
    for content, (_, row) in zip(encoded, model.predict(None, sent).iterrows(), strict=True):
        pixels = EncodedImage(content).pixels()
        prepared = evaluation_pixels(pixels, OPTIONS.scale, OPTIONS.divisor)
        images = Normalise(AugmentConfig())(torch.from_numpy(prepared).permute(2, 0, 1)[None], torch.device("cpu"))
        with torch.inference_mode():
            expected = predict(model.network, images, pixels.shape[:2])[0].numpy()
        label_map = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["label_map"]))))
        assert len(np.unique(expected)) > 1
        assert (label_map == expected).mean() > 0.999
        assert TASK.served.agreement(row["label_map"], expected.astype(np.uint8)) > 0.999
        assert (row["height"], row["width"]) == pixels.shape[:2]
        assert sum(entry["share"] for entry in row["classes"]) == pytest.approx(1)
        largest = np.bincount(label_map.ravel()).argmax()
        assert row["classes"][0]["class_name"] == NAMES[largest]


def test_what_is_no_image_is_refused_with_its_position(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "serve", pipeline.serve)
    with pytest.raises(ValueError, match="input 1 is not an image"):
        model.predict(None, [photograph(1), b"no image at all, only text"])
