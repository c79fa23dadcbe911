"""The text graphs: the encoder that prepares cross-attention, and one step of the decoder (BART, post-norm).

The weights are those of transformers' `BartEncoder` and `BartDecoder`. No masks: the serving side never pads, and feeds
the decoder one token a step.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convert.layers import attention, layer_norm, linear


def feed_forward(x: Tensor, layer: Any) -> Tensor:
    """The residual two-layer perceptron that ends an encoder or decoder layer."""
    hidden = linear(layer.activation_fn(linear(x, layer.fc1)), layer.fc2)
    return layer_norm(x + hidden, layer.final_layer_norm)


class EncoderGraph(nn.Module):
    """Image features (1, tokens, d_model) and prompt embeddings (1, P, d_model) to what the decoder attends to.

    Returns key 0, value 0, key 1, … of the decoder's cross-attention layers: keys (1, heads, head_dim, tokens + P),
    already transposed for the product with the query, and values (1, heads, tokens + P, head_dim).
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.encoder = cast(Any, language_model.encoder)
        self.cross = nn.ModuleList(layer.encoder_attn for layer in cast(Any, language_model.decoder).layers)

    def forward(self, image_features: Tensor, prompt_embeddings: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat([image_features, prompt_embeddings], dim=1)
        table = self.encoder.embed_positions
        positions = table.weight[table.offset : table.offset + x.shape[1]].float()
        x = layer_norm(x + positions, self.encoder.layernorm_embedding)
        for layer in self.encoder.layers:
            attn = layer.self_attn
            query, key, value = (split_heads(linear(x, part), attn) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
            y = attention(query.permute(0, 2, 1, 3), key.permute(0, 2, 3, 1), value.permute(0, 2, 1, 3), attn.scaling)
            y = linear(y.permute(0, 2, 1, 3).reshape(1, -1, attn.embed_dim), attn.out_proj)
            x = feed_forward(layer_norm(x + y, layer.self_attn_layer_norm), layer)
        outputs: list[Tensor] = []
        for attn in cast(Any, self.cross):
            outputs.append(split_heads(linear(x, attn.k_proj), attn).permute(0, 2, 3, 1))
            outputs.append(split_heads(linear(x, attn.v_proj), attn).permute(0, 2, 1, 3))
        return tuple(outputs)


class DecoderGraph(nn.Module):
    """One step of the decoder for B rows, which are the beams of one picture.

    `forward` takes the last token (B) of each row and its position (B), then key and value of each layer: those of
    cross-attention as `EncoderGraph` gives them, and the self-attention cache, each (B, heads, T, head_dim). It returns
    log-probabilities (B, vocabulary), the embeddings (B, d_model) of the tokens, which is how the runtime gets at the
    table for its prompts, and the grown cache.
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.decoder = cast(Any, language_model.decoder)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cross_attention: list[tuple[Tensor, Tensor]],
        self_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        table, positions = self.decoder.embed_tokens, self.decoder.embed_positions
        embeddings = functional.embedding(input_ids, table.weight.float()) * table.embed_scale
        x = embeddings + functional.embedding(position_ids + positions.offset, positions.weight.float())
        x = layer_norm(x, self.decoder.layernorm_embedding)
        present: list[Tensor] = []
        for layer, cross, past in zip(self.decoder.layers, cross_attention, self_key_values, strict=True):
            y, *grown = attend_to_self(x, layer.self_attn, *past)
            x = layer_norm(x + y, layer.self_attn_layer_norm)
            y = attend_to_picture(x, layer.encoder_attn, *cross)
            x = feed_forward(layer_norm(x + y, layer.encoder_attn_layer_norm), layer)
            present += grown
        log_probabilities = torch.log_softmax(functional.linear(x, table.weight.float()), dim=-1)
        return log_probabilities, embeddings, *present


def split_heads(x: Tensor, attn: Any) -> Tensor:
    """(..., embed_dim) to (..., heads, head_dim)."""
    return x.view(*x.shape[:-1], attn.num_heads, attn.head_dim)


def attend_to_self(x: Tensor, attn: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the new token (B, d_model) to itself and the cached ones; also returns the grown caches.

    It is one scaled_dot_product_attention on cache and new token joined, the pattern from which OpenVINO's plugins make
    a cache that grows in place and is reordered by index. BART's scale is that operation's default; said explicitly it
    would bring a placeholder for a mask, which the CPU plugin refuses.
    """
    rows = x.shape[0]
    query = split_heads(linear(x, attn.q_proj), attn).unsqueeze(2)
    key = torch.cat([key, split_heads(linear(x, attn.k_proj), attn).unsqueeze(2)], dim=2)
    value = torch.cat([value, split_heads(linear(x, attn.v_proj), attn).unsqueeze(2)], dim=2)
    y = functional.scaled_dot_product_attention(query, key, value)
    return linear(y.reshape(rows, attn.embed_dim), attn.out_proj), key, value


def attend_to_picture(x: Tensor, attn: Any, key_transposed: Tensor, value: Tensor) -> Tensor:
    """Attention of B rows (B, d_model) to one picture: the rows stand where queries do, nothing is copied for each."""
    query = split_heads(linear(x, attn.q_proj), attn).permute(1, 0, 2).unsqueeze(0)
    y = attention(query, key_transposed, value, attn.scaling)
    return linear(y.squeeze(0).permute(1, 0, 2).reshape(-1, attn.embed_dim), attn.out_proj)
