"""Layers of the exported graphs, computed in f32 with the weights of transformers' modules.

Weights keep their stored type and are converted at each use, so that a float16 weight is a float16 constant of the IR,
while values that the graph computes from constants (scales, normalization) are never rounded to float16.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Multiply `x` (..., in) by the layer's weight (out, in) and add its bias if it has one: (..., out)."""
    return functional.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Normalize the last axis of `x` with the layer's gain, shift and epsilon."""
    return functional.layer_norm(x, layer.normalized_shape, layer.weight.float(), layer.bias.float(), layer.eps)


def convolution(tokens: Tensor, layer: nn.Conv2d, grid: tuple[int, int]) -> Tensor:
    """Convolve tokens (1, H*W, C) on a `grid` (H, W): (1, H'*W', C').

    The reshapes and permutes around the convolution cost nothing on the CPU, whose kernels use channels-last layout, as
    long as there is no other operation between them.
    """
    height, width = grid
    x = tokens.view(1, height, width, layer.in_channels).permute(0, 3, 1, 2)
    x = functional.conv2d(
        x,
        layer.weight.float(),
        None if layer.bias is None else layer.bias.float(),
        stride=cast("tuple[int, int]", layer.stride),
        padding=cast("tuple[int, int]", layer.padding),
        groups=layer.groups,
    )
    return x.permute(0, 2, 3, 1).reshape(1, -1, layer.out_channels)


def attention(query: Tensor, key_transposed: Tensor, value: Tensor, scale: float) -> Tensor:
    """Apply softmax attention: query (..., T, D), transposed key (..., D, S), value (..., S, D) to (..., T, D)."""
    weights = torch.softmax(torch.matmul(query, key_transposed) * scale, dim=-1)
    return torch.matmul(weights, value)
