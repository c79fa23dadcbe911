"""The vision graph: one uint8 picture to image features (DaViT tower and multimodal projector).

The weights are those of transformers' `Florence2VisionBackbone` and `Florence2MultiModalProjector`; the order of the
operations differs. The residual stream stays (1, tokens, channels) from the pixels to the features, so that the graph
has none of the transposes that take a quarter of the traced original's time on a CPU.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convert.layers import attention, convolution, layer_norm, linear

Grid = tuple[int, int]


class VisionGraph(nn.Module):
    """The vision graph, from uint8 RGB pixels (1, H, W, 3) to float32 image features (1, 1 + tokens, d_model).

    Args:
        model: a `Florence2Model`, whose weights are shared, not copied.
        image_size: height and width of the model's input in pixels.
        image_mean: per channel, for pixel values scaled to 0..1.
        image_std: per channel, for pixel values scaled to 0..1.
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
        """Return the image features of a picture."""
        grid = self.image_size
        x = (pixels.float() * self.scale + self.shift).reshape(1, grid[0] * grid[1], -1)
        for embed, blocks in zip(self.tower.convs, self.tower.blocks, strict=True):
            x, grid = patch_embed(x, embed, grid)
            for block in blocks:
                x = spatial_block(x, block.spatial_block, grid)
                x = channel_block(x, block.channel_block, grid)
        return project(x, self.projector, grid)


def patch_embed(x: Tensor, embed: Any, grid: Grid) -> tuple[Tensor, Grid]:
    """Apply a strided patch convolution, normalized before or after: tokens on `grid` to tokens on the new grid."""
    if embed.pre_norm:
        x = layer_norm(x, embed.norm)
    x = convolution(x, embed.conv, grid)
    if not embed.pre_norm:
        x = layer_norm(x, embed.norm)
    return x, patch_grid(grid, embed.conv.kernel_size[0], embed.conv.stride[0], embed.conv.padding[0])


def patch_grid(grid: Grid, size: int, stride: int, padding: int) -> Grid:
    """Return the grid (height, width) after a patch convolution."""
    height, width = ((side + 2 * padding - size) // stride + 1 for side in grid)
    return height, width


def num_image_tokens(vision_config: Any, image_size: Grid) -> int:
    """Return the number of image tokens: one for each cell of the last grid, and one for their mean."""
    grid = image_size
    patches = zip(vision_config.patch_size, vision_config.patch_stride, vision_config.patch_padding, strict=True)
    for size, stride, padding in patches:
        grid = patch_grid(grid, size, stride, padding)
    return max(grid[0], 0) * max(grid[1], 0) + 1


def spatial_block(x: Tensor, block: Any, grid: Grid) -> Tensor:
    """Apply attention within windows of the grid, then the feed-forward layer."""
    x = x + convolution(x, block.conv1, grid)
    x = x + window_attention(layer_norm(x, block.norm1), block.window_attn, grid)
    return feed_forward(x, block, grid)


def channel_block(x: Tensor, block: Any, grid: Grid) -> Tensor:
    """Apply attention between the channels of each group, then the feed-forward layer."""
    x = x + convolution(x, block.conv1, grid)
    x = x + channel_attention(layer_norm(x, block.norm1), block.channel_attn, grid)
    return feed_forward(x, block, grid)


def feed_forward(x: Tensor, block: Any, grid: Grid) -> Tensor:
    """Apply a depthwise convolution and a two-layer perceptron, both residual."""
    x = x + convolution(x, block.conv2, grid)
    hidden = block.ffn.activation_fn(linear(layer_norm(x, block.norm2), block.ffn.fc1))
    return x + linear(hidden, block.ffn.fc2)


def split_linear(qkv: nn.Linear) -> list[nn.Linear]:
    """Split a joint layer into its three projections, which are views of its weights.

    Three products avoid a five-dimensional transpose, and only an entire parameter is traced as a constant of its type.
    """
    projections = []
    for index, weight in enumerate(qkv.weight.data.chunk(3)):
        projection = nn.Linear(qkv.in_features, qkv.out_features // 3, bias=qkv.bias is not None, device="meta")
        projection.weight = nn.Parameter(weight, requires_grad=False)
        if qkv.bias is not None:
            projection.bias = nn.Parameter(qkv.bias.data.chunk(3)[index], requires_grad=False)
        projections.append(projection)
    return projections


def window_attention(x: Tensor, attn: Any, grid: Grid) -> Tensor:
    """Apply multi-head attention within each window; the grid is padded with zeros to a multiple of the window."""
    height, width = grid
    window, heads, channels = attn.window_size, attn.num_heads, attn.dim
    bottom, right = -height % window, -width % window
    if bottom or right:
        x = functional.pad(x.view(1, height, width, channels), (0, 0, 0, right, 0, bottom))
    rows, columns = (height + bottom) // window, (width + right) // window
    # A transpose of four axes, (rows, window, columns, window * channels), which the CPU copies in large blocks.
    x = x.reshape(rows, window, columns, window * channels).permute(0, 2, 1, 3).reshape(-1, window * window, channels)
    query, key, value = (
        linear(x, projection).view(-1, window * window, heads, channels // heads)
        for projection in (attn.query, attn.key, attn.value)
    )
    x = attention(query.permute(0, 2, 1, 3), key.permute(0, 2, 3, 1), value.permute(0, 2, 1, 3), attn.scale)
    x = linear(x.permute(0, 2, 1, 3).reshape(-1, window * window, channels), attn.proj)
    x = x.view(rows, columns, window, window * channels).permute(0, 2, 1, 3)
    if bottom or right:
        x = x.reshape(height + bottom, width + right, channels)[:height, :width]
    return x.reshape(1, height * width, channels)


def channel_attention(x: Tensor, attn: Any, grid: Grid) -> Tensor:
    """Apply attention between the channels of each group, over all tokens: softmax(qᵀk / √tokens) applied to v.

    The sum over tens of thousands of tokens would exceed the range of f16, in which GPUs compute, so q is scaled first.
    """
    tokens, channels = grid[0] * grid[1], attn.dim
    query, key, value = (
        linear(x, projection).view(1, tokens, attn.groups, channels // attn.groups).permute(0, 2, 1, 3)
        for projection in (attn.query, attn.key, attn.value)
    )
    weights = torch.softmax(torch.matmul((query * tokens**-0.5).transpose(2, 3), key), dim=-1)
    x = torch.matmul(value, weights.transpose(2, 3))
    return linear(x.permute(0, 2, 1, 3).reshape(1, tokens, channels), attn.proj)


def project(x: Tensor, projector: Any, grid: Grid) -> Tensor:
    """Add positions, prepend the mean of all tokens and project to the width of the text model."""
    height, width = grid
    columns = projector.image_position_embed.column_embeddings.weight[:width].float()
    rows = projector.image_position_embed.row_embeddings.weight[:height].float()
    positions = torch.cat([columns.repeat(height, 1), rows.repeat_interleave(width, dim=0)], dim=-1)
    x = x + (positions + projector.visual_temporal_embed.pos_idx_to_embed[:1].float())
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    return layer_norm(linear(x, projector.image_projection), projector.image_proj_norm)
