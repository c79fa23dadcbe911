"""The layers of the export graphs: transformers' modules as weights, computed in f32.

Weights keep the type they are stored in and are widened where they are used, so that a float16 weight is a float16
constant of the IR, while what the graph computes from constants (scales, normalisation) is never rounded to float16.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """`x` (..., in) times the layer's weight (out, in), plus its bias if it has one: (..., out)."""
    return functional.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Normalises the last axis of `x` with the layer's gain, shift and epsilon."""
    return functional.layer_norm(x, layer.normalized_shape, layer.weight.float(), layer.bias.float(), layer.eps)


def convolution(tokens: Tensor, layer: nn.Conv2d, grid: tuple[int, int]) -> Tensor:
    """Convolves tokens (1, H*W, C) that lie on a `grid` (H, W): (1, H'*W', C').

    The reshapes and permutes around the convolution cost nothing on the CPU, whose kernels want channels last, as
    long as nothing else stands between them.
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
    """Softmax attention: query (..., T, D), transposed key (..., D, S), value (..., S, D) to (..., T, D)."""
    weights = torch.softmax(torch.matmul(query, key_transposed) * scale, dim=-1)
    return torch.matmul(weights, value)
