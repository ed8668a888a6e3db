"""Triton kernels of TransXNet's operators, each with its reference in plain PyTorch in the same file.

`transxnet.backend` decides where the kernels run. They are imported only there, and nothing else here needs triton.

| operator of the paper (arXiv 2310.19380) | file |
|---|---|
| GroupNorm at the start of a branch | `group_norm` |
| D-Mixer: IDConv and OSRA side by side | `token_mixing` |
| IDConv: the convolution with each sample's own kernels | `idconv.dynamic_conv` |
| IDConv: adaptive means of the input | `idconv.means` |
| IDConv: kernels from the means, and the gradient | `idconv.generator`, `idconv.generator_gradients` |
| OSRA: spatial reduction of keys and values | `osra.spatial_reduction`, `osra.strided_conv` |
| OSRA: projections to queries, keys and values | `osra.projection` |
| OSRA: attention with position bias | `osra.attention` |
| OSRA: attention to any number of keys | `osra.streaming`, `osra.streaming_gradients` |
| position embedding, STE: depthwise convolutions | `common.depthwise_conv` |
| STE, MS-FFN: GELU, BatchNorm and 1x1 convolution | `common.linear` |
| MS-FFN: expansion | `msffn.expansion` |
| MS-FFN: multi-scale depthwise convolution | `msffn.multiscale` |
| BatchNorm, LayerScale, stochastic depth, residual | `residual` |
| used by several: tiles, GELU, BatchNorm statistics | `common.tiles`, `common.activation`, `common.statistics` |
"""

__all__: list[str] = []
