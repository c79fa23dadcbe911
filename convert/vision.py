"""The vision graph: one u8 picture in, image features out (DaViT tower and multimodal projector).

The weights are those of transformers' `Florence2VisionBackbone` and `Florence2MultiModalProjector`; the order of the
operations is ours. The residual stream stays (1, tokens, channels) from the pixels to the features, so that the graph
has none of the transposes that take a quarter of the time of the traced original on a CPU.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convert.layers import attention, convolution, layer_norm, linear

Grid = tuple[int, int]


class VisionGraph(nn.Module):
    """uint8 RGB pixels (1, H, W, 3) to float32 image features (1, 1 + tokens, d_model).

    Args:
        model: a `Florence2Model`, whose weights are shared, not copied.
        image_size: (height, width) of the model's input, pixels.
        image_mean, image_std: per channel, of pixel values scaled to 0..1.
    """

    def __init__(self, model: nn.Module, image_size: Grid, image_mean: list[float], image_std: list[float]) -> None:
        super().__init__()
        self.tower = cast(Any, model.vision_tower)
        self.projector = cast(Any, model.multi_modal_projector)
        for module in self.tower.modules():
            if hasattr(module, "qkv"):
                module.query, module.key, module.value = split_linear(module.qkv)
        self.image_size = image_size
        mean, std = torch.tensor(image_mean, dtype=torch.float64), torch.tensor(image_std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float()
        self.shift = (-mean / std).float()

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.image_size
        x = (pixels.float() * self.scale + self.shift).reshape(1, grid[0] * grid[1], -1)
        for embed, blocks in zip(self.tower.convs, self.tower.blocks, strict=True):
            x, grid = patch_embed(x, embed, grid)
            for block in blocks:
                x = spatial_block(x, block.spatial_block, grid)
                x = channel_block(x, block.channel_block, grid)
        return project(x, self.projector, grid)


def patch_embed(x: Tensor, embed: Any, grid: Grid) -> tuple[Tensor, Grid]:
    """Strided patch convolution, normalised before or after: tokens on `grid` to tokens on the returned grid."""
    if embed.pre_norm:
        x = layer_norm(x, embed.norm)
    x = convolution(x, embed.conv, grid)
    if not embed.pre_norm:
        x = layer_norm(x, embed.norm)
    return x, patch_grid(grid, embed.conv.kernel_size[0], embed.conv.stride[0], embed.conv.padding[0])


def patch_grid(grid: Grid, size: int, stride: int, padding: int) -> Grid:
    """The grid (height, width) that a patch convolution makes of a grid."""
    height, width = ((side + 2 * padding - size) // stride + 1 for side in grid)
    return height, width


def image_tokens(vision: Any, image_size: Grid) -> int:
    """How many tokens a picture becomes by a vision configuration: one a cell of the last grid, and their mean."""
    grid = image_size
    for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        grid = patch_grid(grid, size, stride, padding)
    return max(grid[0], 0) * max(grid[1], 0) + 1


def spatial_block(x: Tensor, block: Any, grid: Grid) -> Tensor:
    """Attention inside windows of the grid, then the feed-forward layer."""
    x = x + convolution(x, block.conv1, grid)
    x = x + window_attention(layer_norm(x, block.norm1), block.window_attn, grid)
    return feed_forward(x, block, grid)


def channel_block(x: Tensor, block: Any, grid: Grid) -> Tensor:
    """Attention between the channels of each group, then the feed-forward layer."""
    x = x + convolution(x, block.conv1, grid)
    x = x + channel_attention(layer_norm(x, block.norm1), block.channel_attn, grid)
    return feed_forward(x, block, grid)


def feed_forward(x: Tensor, block: Any, grid: Grid) -> Tensor:
    """Depthwise convolution and two-layer perceptron, both residual."""
    x = x + convolution(x, block.conv2, grid)
    hidden = block.ffn.activation_fn(linear(layer_norm(x, block.norm2), block.ffn.fc1))
    return x + linear(hidden, block.ffn.fc2)


def split_linear(qkv: nn.Linear) -> list[nn.Linear]:
    """The three projections that a joint layer holds, as views of its weights.

    Three products spare a five-dimensional transpose, and only a whole parameter is traced as a constant of its type.
    """
    parts = []
    for index, weight in enumerate(qkv.weight.data.chunk(3)):
        part = nn.Linear(qkv.in_features, qkv.out_features // 3, bias=qkv.bias is not None, device="meta")
        part.weight = nn.Parameter(weight, requires_grad=False)
        if qkv.bias is not None:
            part.bias = nn.Parameter(qkv.bias.data.chunk(3)[index], requires_grad=False)
        parts.append(part)
    return parts


def window_attention(x: Tensor, attn: Any, grid: Grid) -> Tensor:
    """Multi-head attention among the tokens of each window; the grid is padded with zeros to whole windows."""
    height, width = grid
    window, heads, channels = attn.window_size, attn.num_heads, attn.dim
    down, right = -height % window, -width % window
    if down or right:
        x = functional.pad(x.view(1, height, width, channels), (0, 0, 0, right, 0, down))
    rows, columns = (height + down) // window, (width + right) // window
    # a transpose of four axes, (rows, window, columns, window * channels), which the CPU does in large blocks
    x = x.reshape(rows, window, columns, window * channels).permute(0, 2, 1, 3).reshape(-1, window * window, channels)
    query, key, value = (
        linear(x, part).view(-1, window * window, heads, channels // heads)
        for part in (attn.query, attn.key, attn.value)
    )
    x = attention(query.permute(0, 2, 1, 3), key.permute(0, 2, 3, 1), value.permute(0, 2, 1, 3), attn.scale)
    x = linear(x.permute(0, 2, 1, 3).reshape(-1, window * window, channels), attn.proj)
    x = x.view(rows, columns, window, window * channels).permute(0, 2, 1, 3)
    if down or right:
        x = x.reshape(height + down, width + right, channels)[:height, :width]
    return x.reshape(1, height * width, channels)


def channel_attention(x: Tensor, attn: Any, grid: Grid) -> Tensor:
    """Attention of channels to channels of their group, over all tokens: softmax(qᵀk / √tokens) applied to v.

    The sum over tens of thousands of tokens would leave the range of f16, which GPUs compute in, so q is scaled before.
    """
    tokens, channels = grid[0] * grid[1], attn.dim
    query, key, value = (
        linear(x, part).view(1, tokens, attn.groups, channels // attn.groups).permute(0, 2, 1, 3)
        for part in (attn.query, attn.key, attn.value)
    )
    weights = torch.softmax(torch.matmul((query * tokens**-0.5).transpose(2, 3), key), dim=-1)
    x = torch.matmul(value, weights.transpose(2, 3))
    return linear(x.permute(0, 2, 1, 3).reshape(1, tokens, channels), attn.proj)


def project(x: Tensor, projector: Any, grid: Grid) -> Tensor:
    """Adds positions, puts the mean of all tokens before them and projects to the width of the text model."""
    height, width = grid
    columns = projector.image_position_embed.column_embeddings.weight[:width].float()
    rows = projector.image_position_embed.row_embeddings.weight[:height].float()
    positions = torch.cat([columns.repeat(height, 1), rows.repeat_interleave(width, dim=0)], dim=-1)
    x = x + (positions + projector.visual_temporal_embed.pos_idx_to_embed[:1].float())
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    return layer_norm(linear(x, projector.image_projection), projector.image_proj_norm)
