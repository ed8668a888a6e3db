"""Every form of a file of weights that people have loads in all three ways, and what cannot be used is refused."""

import re
from pathlib import Path

import pytest
import torch

import transxnet
from pipeline.common.errors import PipelineError
from pipeline.config.schema import ConfigError
from pipeline.weights.load import initialise, load_model
from tests.support.weights_files import CLASSES, FORMS, REFUSED, SIZE, Made, network, trained
from tests.transxnet.fixtures import images


@pytest.fixture(scope="module")
def models():
    return trained(0), trained(1)


@pytest.fixture
def made(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Made(*models, folder=tmp_path)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images(2, SIZE))


def test_there_are_as_many_forms_as_promised():
    assert len(FORMS) >= 20


ALL_WAYS = ("own names, safetensors",)
"""Forms that load in all three ways in the default tests; each form is read there, by the reader of all three."""


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_as_the_weights_that_it_holds(form: str, made: Made):
    state, own = transxnet.pretrained.read_weights(FORMS[form](made)), made.own
    assert state.keys() == own.keys()
    # A file may lack the batch counters of its norms, which no output depends on.
    weights = {name for name in state if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(state[name], own[name]) for name in weights)


@pytest.mark.parametrize("form", [f if f in ALL_WAYS else pytest.param(f, marks=pytest.mark.thorough) for f in FORMS])
def test_a_file_loads_in_all_three_ways_with_equal_logits(form: str, made: Made):
    path = FORMS[form](made)
    expected = logits(made.model)
    by_python = transxnet.transxnet_n(pretrained=path)
    assert (by_python.config.num_classes, by_python.config.image_size) == (CLASSES, SIZE)
    assert torch.equal(logits(by_python), expected)
    begun = network()
    said = initialise(begun, str(path))
    assert said.startswith(f"weights of {path}")
    assert torch.equal(logits(begun), expected)
    assert torch.equal(logits(load_model(str(path)).network), expected)


@pytest.mark.parametrize("cut", ["classifier.", pytest.param("classifier.2.", marks=pytest.mark.thorough)])
def test_a_file_without_a_classifier_gives_its_features(cut: str, made: Made):
    state = {name: value for name, value in made.upstream.items() if not name.startswith(cut)}
    path = made.folder / "features.pth"
    torch.save({"state_dict": state}, path)
    x = images(2, SIZE)
    begun = network()
    assert "classifier initialised afresh (not in the weights)" in initialise(begun, str(path))
    with torch.no_grad():
        expected = made.model.forward_features(x)
        for model in (transxnet.transxnet_n(num_classes=3, pretrained=path).eval(), begun.eval()):
            assert all(map(torch.equal, model.forward_features(x), expected))
    with pytest.raises(PipelineError, match=r"holds transxnet_n without a classifier, which gives no logits$"):
        load_model(str(path))


def test_tables_are_resized_both_ways_and_other_classes_begin_afresh(made: Made):
    """Of 224 px weights at 384 px, and the reverse: here at 32 and 64 px."""
    path = made.folder / "weights.pth"
    torch.save(made.upstream, path)
    large = network(image_size=64, num_classes=3)
    said = initialise(large, str(path))
    assert "classifier.linear.bias initialised afresh (7 classes in the weights, 3 in the model)" in said
    assert "stages.0.position_bias.table resized from [64, 1] to [256, 4]" in said
    torch.save(transxnet.to_upstream(large.state_dict()), path)
    small = transxnet.transxnet_n(pretrained=path, image_size=32)
    assert (small.config.num_classes, small.config.image_size) == (3, 32)
    with torch.no_grad():
        # The network resizes its tables for other inputs in the same way.
        x = images(2, 64)
        torch.testing.assert_close(large.eval()(x)[:, 0], transxnet.transxnet_n(pretrained=path).eval()(x)[:, 0])
        resized = network(image_size=64, num_classes=CLASSES)
        transxnet.load_weights(resized, made.own)
        torch.testing.assert_close(resized.eval()(x), made.model(x))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(case: str, made: Made):
    write, words = REFUSED[case]
    path = str(write(made))
    for load, error in (
        (lambda: transxnet.transxnet_n(pretrained=path), ValueError),
        (lambda: initialise(network(), path), ConfigError),
        (lambda: load_model(path), PipelineError),
    ):
        with pytest.raises(error) as caught:
            load()
        message = str(caught.value)
        assert re.search(words, message), message
        assert Path(path).name in message
        assert "\n" not in message
        assert "\x1b" not in message
        assert len(message.replace(str(Path(path).parent), "")) < 400
    assert not Path("executed").exists()


def test_the_entry_is_said_and_can_be_chosen(made: Made, caplog):
    path = FORMS["timm's saver with EMA"](made)
    begun = network()
    assert "; entry state_dict_ema; state_dict left out" in initialise(begun, str(path))
    with caplog.at_level("INFO", logger="transxnet"):
        raw = transxnet.transxnet_n(pretrained=path, entry="state_dict")
    assert "; entry state_dict; state_dict_ema left out" in caplog.text
    expected = logits(made.other)
    assert torch.equal(logits(raw), expected)
    assert "entry state_dict;" in initialise(begun, str(path), entry="state_dict")
    assert torch.equal(logits(begun), expected)
    loaded = load_model(str(path), entry="state_dict")
    assert loaded.origin == "entry state_dict; state_dict_ema left out"
    assert torch.equal(logits(loaded.network), expected)
    with pytest.raises(ConfigError, match=r"it has no weights 'ema': it has state_dict, state_dict_ema$"):
        initialise(begun, str(path), entry="ema")
