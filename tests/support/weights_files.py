"""Files of one network's weights in the forms that people have, and files that must be refused.

They are written by the programs that write them elsewhere: torch, timm's `CheckpointSaver` and safetensors. Lightning's
and mmcv's files are dicts with the keys that these programs write.
"""

import argparse
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV2
from torch import Tensor, nn

import transxnet

CLASSES, SIZE = 7, 32


def network(**settings) -> transxnet.TransXNet:
    """A nano network in evaluation mode, as the files hold it."""
    return transxnet.build("transxnet_n", **({"num_classes": CLASSES, "image_size": SIZE} | settings)).eval()


def trained(seed: int = 0) -> transxnet.TransXNet:
    """A network each of whose tensors affects the logits."""
    model = network()
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else value + 0.1 * noise)
        else:
            value.fill_(seed + 3)
    return model


@dataclass
class Made:
    """What the forms are made of: the network that must be found, and another one that must not."""

    model: transxnet.TransXNet
    other: transxnet.TransXNet
    folder: Path

    @property
    def own(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    @property
    def upstream(self) -> dict[str, Tensor]:
        return transxnet.to_upstream(self.own)

    @property
    def upstream_other(self) -> dict[str, Tensor]:
        return transxnet.to_upstream(self.other.state_dict())


def prefixed(prefix: str, state: dict[str, Tensor]) -> "OrderedDict[str, Tensor]":
    return OrderedDict((prefix + name, value) for name, value in state.items())


class _Named(nn.Module):
    """A module with the published names, as timm's saver sees upstream's model."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.published = state

    def state_dict(self, *_, **__):
        return self.published


def timm_file(made: Made, *, ema: bool, legacy: bool = False) -> Path:
    """The newest checkpoint of timm's own saver: with command line, optimizer, scaler and a NumPy metric."""
    taken, left = (made.upstream_other, made.upstream) if ema else (made.upstream, None)
    model = _Named(taken)
    optimizer = torch.optim.AdamW([model.weight], lr=1e-3)
    model.weight.grad = torch.ones(1)
    optimizer.step()
    average = None
    if left is not None:
        average = ModelEmaV2(model)
        average.module.published = left

    class Scaler:
        state_dict_key = "amp_scaler"

        def state_dict(self):
            return torch.amp.GradScaler("cpu").state_dict()

    args = argparse.Namespace(model="transxnet_n", lr=2e-3, ratio=[0.75, 1.33], device=torch.device("cpu"), output=None)
    folder = made.folder / f"timm{ema}{legacy}"
    folder.mkdir()
    saver = CheckpointSaver(
        model, optimizer, args=args, model_ema=average, amp_scaler=Scaler(), checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )  # fmt: skip
    saver.save_checkpoint(3, metric=np.float64(81.6))
    path = folder / "model_best.pth.tar"
    if legacy:
        content = torch.load(path, weights_only=False)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def _saved(name: str, content: Callable[[Made], object], **options) -> Callable[[Made], Path]:
    def write(made: Made) -> Path:
        path = made.folder / name
        torch.save(content(made), path, **options)
        return path

    return write


def _safetensors(name: str, content: Callable[[Made], dict[str, Tensor]]) -> Callable[[Made], Path]:
    def write(made: Made) -> Path:
        path = made.folder / name
        save_file({key: value.contiguous().clone() for key, value in content(made).items()}, path)
        return path

    return write


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def _lightning(made: Made) -> dict[str, object]:
    state = prefixed("model.", made.upstream)
    state["criterion.weight"] = torch.ones(CLASSES)
    return {
        "epoch": 3, "global_step": 40, "pytorch-lightning_version": "2.4.0", "state_dict": state, "loops": {},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.8), "dirpath": "/x"}},
        "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"lr": 1e-3},
    }  # fmt: skip


def _two_networks(made: Made) -> dict[str, object]:
    state = prefixed("model.", made.upstream_other) | prefixed("ema_model.module.", made.upstream)
    return {"state_dict": OrderedDict(state)}


LEGACY = {"_use_new_zipfile_serialization": False}
FORMS: dict[str, Callable[[Made], Path]] = {
    "the authors' file: state dict under the published names": _saved("a.pth", lambda m: m.upstream),
    "the same in torch's older format": _saved("a.pt", lambda m: m.upstream, **LEGACY),
    "own names, torch": _saved("own.pt", lambda m: m.own),
    "own names, safetensors": _safetensors("own.safetensors", lambda m: m.own),
    "published names, safetensors": _safetensors("published.safetensors", lambda m: m.upstream),
    "safetensors without batch counters": _safetensors("bare.safetensors", lambda m: _without_counters(m.upstream)),
    "timm's saver": lambda made: timm_file(made, ema=False),
    "timm's saver with EMA": lambda made: timm_file(made, ema=True),
    "timm's saver with EMA, older format": lambda made: timm_file(made, ema=True, legacy=True),
    "an empty EMA entry beside the weights": _saved(
        "e.pth", lambda m: {"state_dict_ema": {}, "state_dict": m.upstream, "epoch": 3}
    ),
    "entry model, as DeiT's scripts": _saved(
        "d.pth", lambda m: {"model": m.upstream, "args": argparse.Namespace(lr=1.0), "max_accuracy": np.float32(81)}
    ),
    "entries model and model_ema": _saved("v.pth", lambda m: {"model": m.upstream_other, "model_ema": m.upstream}),
    "entry in an entry": _saved("n.pth", lambda m: {"checkpoint": {"model": {"state_dict": m.upstream}}, "step": 1}),
    "prefix module.": _saved("ddp.pth", lambda m: prefixed("module.", m.upstream)),
    "prefix _orig_mod.": _saved("compiled.pth", lambda m: prefixed("_orig_mod.", m.own)),
    "prefix model.": _saved("wrapped.bin", lambda m: prefixed("model.", m.upstream)),
    "prefix backbone.": _saved("backbone.pth", lambda m: {"state_dict": prefixed("backbone.", m.upstream)}),
    "prefixes module._orig_mod.model.backbone. together": _saved(
        "all.pth", lambda m: prefixed("module._orig_mod.model.backbone.", m.upstream)
    ),
    "wrapped blocks, as FSDP leaves them": _saved(
        "fsdp.pt", lambda m: {k.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): v for k, v in m.own.items()}
    ),
    "pytorch_model.bin": _saved("pytorch_model.bin", lambda m: m.upstream),
    "Lightning's .ckpt": _saved("last.ckpt", _lightning),
    "two networks in one state dict": _saved("two.ckpt", _two_networks),
    "an averaged model of torch.optim.swa_utils": _saved(
        "swa.pth", lambda m: torch.optim.swa_utils.AveragedModel(m.model).state_dict()
    ),
    "parameters instead of tensors": _saved(
        "parameters.pth", lambda m: {k: nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in m.own.items()}
    ),
    "safetensors named .bin": lambda made: _safetensors("own.safetensors", lambda m: m.own)(made).rename(
        made.folder / "named.bin"
    ),
}
"""Forms whose logits are those of `Made.model`, by a description."""


class Hostile:
    """A pickle of it runs a shell command where it is loaded."""

    def __reduce__(self):
        return os.system, ("touch executed",)


class HostileQuietly:
    """As `Hostile`, by a function that torch does not know by name."""

    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


def _cut(write: Callable[[Made], Path], share: float) -> Callable[[Made], Path]:
    def write_cut(made: Made) -> Path:
        path = write(made)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return write_cut


def _flipped(made: Made) -> Path:
    path = _saved("flipped.pth", lambda m: m.upstream)(made)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def _text(name: str, text: str) -> Callable[[Made], Path]:
    def write(made: Made) -> Path:
        (made.folder / name).write_text(text, encoding="utf-8")
        return made.folder / name

    return write


def _script(made: Made) -> Path:
    import warnings

    path = made.folder / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    return path


def _plain_pickle(made: Made) -> Path:
    path = made.folder / "plain.pth"
    path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    return path


def _without_a_block(made: Made) -> dict[str, Tensor]:
    return {name: value for name, value in made.upstream.items() if not name.startswith("network.2.")}


REFUSED: dict[str, tuple[Callable[[Made], Path], str]] = {
    "a call beside good weights": (
        _saved("call.pth", lambda m: {"state_dict": m.upstream, "epoch": Hostile()}),
        r"nothing in it was run: .* a call of posix\.system",
    ),
    "a call in the older format": (
        _saved("call.pt", lambda m: {"state_dict": m.upstream, "epoch": HostileQuietly()}, **LEGACY),
        r"a call of exec",
    ),
    "a plain pickle with a call": (_plain_pickle, r"plain\.pth is a pickle of a newer protocol than torch writes"),
    "a whole pickled module": (
        _saved("module.pth", lambda m: m.model),
        r"it holds a pickled transxnet\.model\.TransXNet, whose code",
    ),
    "a TorchScript program": (_script, r"is a TorchScript program, not weights"),
    "half a file": (_cut(_saved("half.pth", lambda m: m.upstream), 0.5), r"half\.pth is not whole \([\d,]+ bytes"),
    "half a file in the older format": (
        _cut(_saved("half.pt", lambda m: m.upstream, **LEGACY), 0.5),
        r"half\.pt is not whole, or no file",
    ),
    "half a safetensors file": (
        _cut(_safetensors("half.safetensors", lambda m: m.own), 0.5),
        r"half\.safetensors is not whole or no safetensors",
    ),
    "a file with another byte": (_flipped, r"flipped\.pth is damaged \(the checksum of flipped/data/\d+ differs\)"),
    "an empty file": (_text("empty.pth", ""), r"empty\.pth is empty: copy or download it again"),
    "a web page": (_text("page.pth", "<!DOCTYPE html><html>Quota exceeded"), r"is a web page, not weights"),
    "Git LFS's pointer": (_text("lfs.safetensors", "version https://git-lfs.github.com/spec/v1\n"), r"git lfs pull"),
    "text": (_text("notes.pth", "epoch 1"), r"notes\.pth is not a file of weights: torch and safetensors write"),
    "a suffix that nobody reads": (
        _text("model.h5", "x"),
        r"model\.h5 is not a file of weights: its name ends in none of \.safetensors",
    ),
    "another network": (
        _saved("linear.pth", lambda _: {"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 1}),
        r"linear\.pth cannot be used: it holds no weights of a TransXNet \(its entries: state_dict, epoch\)",
    ),
    "a stage missing": (_saved("less.pth", _without_a_block), r"not a TransXNet state dict|another variant"),
    "a tensor alone": (_saved("tensor.pth", lambda _: torch.ones(3)), r"it holds a Tensor"),
}
"""Files that are refused, by a description, each with a pattern of its message."""
