"""TransXNet exactly as published, as a function of a state dict with upstream's names.

The package's model is compared with it in values and in speed: LayerScale and IDConv are grouped convolutions, and the
position bias is interpolated in every block. Drop path is left out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from transxnet import TransXNetConfig

State = dict[str, Tensor]


def trainable(state: State) -> dict[str, Tensor]:
    """Return the entries that are parameters."""
    return {key: value for key, value in state.items() if "running_" not in key and "num_batches" not in key}


def forward_features(state: State, config: TransXNetConfig, images: Tensor, training: bool = False) -> list[Tensor]:
    """Return the four stage maps; `training` uses batch statistics and updates the running statistics in place."""
    x = _conv_norm(state, "patch_embed.proj", images, training, stride=4, padding=3)
    maps = []
    for stage in range(4):
        if stage:
            x = _conv_norm(state, f"network.{2 * stage - 1}.proj", x, training, stride=2, padding=1)
        for index in range(config.depths[stage]):
            x = _block(state, f"network.{2 * stage}.{index}", config, stage, x, training)
        maps.append(x)
    return maps


def forward(state: State, config: TransXNetConfig, images: Tensor, training: bool = False) -> Tensor:
    """Return logits `[N, num_classes]`."""
    x = forward_features(state, config, images, training)[-1]
    x = F.group_norm(x, 1, state["classifier.0.weight"], state["classifier.0.bias"])
    return _conv(state, "classifier.2", F.adaptive_avg_pool2d(x, 1)).flatten(1)


def _conv(state: State, name: str, x: Tensor, **kwargs) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **kwargs)


def _norm(state: State, name: str, x: Tensor, training: bool) -> Tensor:
    if training:
        state[f"{name}.num_batches_tracked"] += 1
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training)


def _conv_norm(state: State, name: str, x: Tensor, training: bool, **kwargs) -> Tensor:
    return _norm(state, f"{name}.bn", _conv(state, f"{name}.conv", x, **kwargs), training)


def _depthwise(state: State, name: str, x: Tensor, kernel: int) -> Tensor:
    return _conv(state, name, x, padding=kernel // 2, groups=x.shape[1])


def _block(state: State, name: str, config: TransXNetConfig, stage: int, x: Tensor, training: bool) -> Tensor:
    x = x + _depthwise(state, f"{name}.pos_embed", x, 7)
    for part, branch in (("1", _token_mixer), ("2", _ffn)):
        normed = F.group_norm(x, 1, state[f"{name}.norm{part}.weight"], state[f"{name}.norm{part}.bias"])
        out = branch(state, name, config, stage, normed, training)
        x = x + _conv(state, f"{name}.layer_scale_{part}", out, groups=out.shape[1])
    return x


def _token_mixer(state: State, name: str, config: TransXNetConfig, stage: int, x: Tensor, training: bool) -> Tensor:
    name = f"{name}.token_mixer"
    local, attended = torch.chunk(x, 2, dim=1)
    local = _idconv(state, f"{name}.local_unit", config.num_groups[stage], local, training)
    attended = _osra(state, f"{name}.global_unit", config, stage, attended, training)
    x = torch.cat([local, attended], dim=1)
    hidden = _norm(state, f"{name}.proj.2", F.gelu(_depthwise(state, f"{name}.proj.0", x, 3)), training)
    hidden = _norm(state, f"{name}.proj.5", F.gelu(_conv(state, f"{name}.proj.3", hidden)), training)
    return _norm(state, f"{name}.proj.7", _conv(state, f"{name}.proj.6", hidden), training) + x


def _idconv(state: State, name: str, groups: int, x: Tensor, training: bool) -> Tensor:
    n, c, h, w = x.shape

    def mixing(pooled: Tensor) -> Tensor:
        hidden = F.gelu(_conv_norm(state, f"{name}.proj.0", pooled, training))
        logits = _conv(state, f"{name}.proj.1", hidden)
        return torch.softmax(logits.reshape(n, groups, c, *pooled.shape[2:]), dim=1)

    weight = (mixing(F.adaptive_avg_pool2d(x, 7)) * state[f"{name}.weight"].unsqueeze(0)).sum(1)
    scale = mixing(torch.mean(x, dim=[-2, -1], keepdim=True)).reshape(n, groups, c)
    bias = (scale * state[f"{name}.bias"].unsqueeze(0)).sum(1).flatten(0)
    out = F.conv2d(x.reshape(1, -1, h, w), weight.reshape(-1, 1, 7, 7), bias, padding=3, groups=n * c)
    return out.reshape(n, c, h, w)


def _osra(state: State, name: str, config: TransXNetConfig, stage: int, x: Tensor, training: bool) -> Tensor:
    n, c, h, w = x.shape
    heads, ratio = config.num_heads[stage], config.sr_ratios[stage]
    q = _conv(state, f"{name}.q", x).reshape(n, heads, c // heads, -1).transpose(-1, -2)
    kv = x
    if ratio > 1:
        kernel = ratio + 3
        kv = _conv_norm(state, f"{name}.sr.0", kv, training, stride=ratio, padding=kernel // 2, groups=c)
        kv = _conv_norm(state, f"{name}.sr.1", F.gelu(kv), training, groups=c)
    kv = _depthwise(state, f"{name}.local_conv", kv, 3) + kv
    k, v = torch.chunk(_conv(state, f"{name}.kv", kv), 2, dim=1)
    k = k.reshape(n, heads, c // heads, -1)
    v = v.reshape(n, heads, c // heads, -1).transpose(-1, -2)
    logits = (q @ k) * (c // heads) ** -0.5
    bias = state[f"relative_pos_enc.{stage}"]
    if logits.shape[2:] != bias.shape[2:]:
        bias = F.interpolate(bias, size=logits.shape[2:], mode="bicubic", align_corners=False)
    out = torch.softmax(logits + bias, dim=-1) @ v
    return out.transpose(-1, -2).reshape(n, c, h, w)


def _ffn(state: State, name: str, config: TransXNetConfig, stage: int, x: Tensor, training: bool) -> Tensor:
    del config, stage
    name = f"{name}.mlp"
    x = _norm(state, f"{name}.fc1.2", F.gelu(_conv(state, f"{name}.fc1.0", x)), training)
    quarter = x.shape[1] // 4
    parts = torch.split(x, [x.shape[1] - 3 * quarter, quarter, quarter, quarter], dim=1)
    looked = [_depthwise(state, f"{name}.dwconv.proj.{i}", part, 2 * i + 1) for i, part in enumerate(parts)]
    x = _norm(state, f"{name}.norm", F.gelu(torch.cat(looked, dim=1) + x), training)
    return _norm(state, f"{name}.fc2.1", _conv(state, f"{name}.fc2.0", x), training)
