"""The text graphs: the encoder with the cross-attention cache, and one step of the decoder (BART, post-norm).

The weights are those of transformers' `BartEncoder` and `BartDecoder`. The encoder has no mask, because its input is
never padded in serving; the decoder takes one token per step.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convert.layers import attention, layer_norm, linear

CANDIDATES = 32  # beam search needs two for each beam, and has at most 16 beams
CHUNK = 64  # tokens; Florence-2's vocabulary of 51,328 has 802 chunks


def feed_forward(x: Tensor, layer: Any) -> Tensor:
    """Apply the residual two-layer perceptron at the end of an encoder or decoder layer."""
    hidden = linear(layer.activation_fn(linear(x, layer.fc1)), layer.fc2)
    return layer_norm(x + hidden, layer.final_layer_norm)


class EncoderGraph(nn.Module):
    """The encoder graph: image features (1, tokens, d_model) and prompt embeddings (1, P, d_model) to cross-attention.

    The outputs are key 0, value 0, key 1, … of the decoder's cross-attention layers: keys (1, heads, head_dim,
    tokens + P), transposed and scaled for the product with the query, which saves both in each step, and values
    (1, heads, tokens + P, head_dim).
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.encoder = cast(Any, language_model.encoder)
        self.cross = nn.ModuleList(layer.encoder_attn for layer in cast(Any, language_model.decoder).layers)

    def forward(self, image_features: Tensor, prompt_embeddings: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values of all cross-attention layers."""
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
            outputs.append((split_heads(linear(x, attn.k_proj), attn) * attn.scaling).permute(0, 2, 3, 1))
            outputs.append(split_heads(linear(x, attn.v_proj), attn).permute(0, 2, 1, 3))
        return tuple(outputs)


class DecoderGraph(nn.Module):
    """One step of the decoder for R rows: one row for each beam, an equal number for each of D pictures, in order."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.decoder = cast(Any, language_model.decoder)
        self.projections: Any = nn.ModuleList(query_key_value(layer.self_attn) for layer in self.decoder.layers)
        self.vocab_size = self.decoder.embed_tokens.weight.shape[0]

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        banned_ids: Tensor,
        encoder_mask: Tensor,
        cross_attention: list[tuple[Tensor, Tensor]],
        self_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        """Compute one step.

        Args:
            input_ids: the last token of each row, (R).
            position_ids: its position, (R).
            attention_mask: additive mask of the cached tokens of each row, (R, 1, 1, T + 1).
            banned_ids: the tokens that must not come next, padded with -1, (R, bans).
            encoder_mask: additive mask of the encoder's tokens of each picture, since prompts differ in length,
                (D, 1, 1, E).
            cross_attention: key and value of each layer as `EncoderGraph` returns them, concatenated over pictures,
                (D, …).
            self_key_values: the self-attention cache, key and value of each layer, each (R, heads, T, head_dim).

        Returns:
            The log-probabilities and the ids of the `CANDIDATES` most likely next tokens, each (R, candidates) with the
            best first; the embeddings (R, d_model) of the input tokens, from which the runtime gets the embeddings of
            its prompts; and the grown cache, key and value of each layer.
        """
        table, positions = self.decoder.embed_tokens, self.decoder.embed_positions
        embeddings = functional.embedding(input_ids, table.weight.float()) * table.embed_scale
        x = embeddings + functional.embedding(position_ids + positions.offset, positions.weight.float())
        x = layer_norm(x, self.decoder.layernorm_embedding)
        present: list[Tensor] = []
        layers = zip(self.decoder.layers, self.projections, cross_attention, self_key_values, strict=True)
        for layer, projection, cross, past in layers:
            y, *grown = attend_to_cache(x, layer.self_attn, projection, attention_mask, *past)
            x = layer_norm(x + y, layer.self_attn_layer_norm)
            y = attend_to_encoder(x, layer.encoder_attn, encoder_mask, *cross)
            x = feed_forward(layer_norm(x + y, layer.encoder_attn_layer_norm), layer)
            present += grown
        logits = functional.linear(x, table.weight.float())
        return *top_log_probs(logits, banned_ids, self.vocab_size), embeddings, *present


def top_log_probs(logits: Tensor, banned_ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and ids of the `CANDIDATES` most likely tokens of each row that are not banned.

    As in transformers' `generate`, bans apply to log-probabilities, which are not normalized again.
    """
    max_logits = logits.amax(-1, keepdim=True)
    log_total = torch.log(torch.exp(logits - max_logits).sum(-1, keepdim=True))
    bans = torch.where(banned_ids < 0, 0.0, -torch.inf)
    values, token_ids = top_logits(logits.scatter_add(1, banned_ids.clamp(min=0), bans), vocab_size)
    return values - max_logits - log_total, token_ids


def top_logits(logits: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return the `CANDIDATES` largest of logits (R, vocab_size) and their token ids, the largest first.

    They are in the chunks with the largest maxima, so only these are sorted; sorting the entire vocabulary would take a
    tenth of the step.
    """
    num_chunks = -(-vocab_size // CHUNK)
    padded = functional.pad(logits, (0, -vocab_size % CHUNK), value=-torch.inf)
    chunks = padded.view(-1, num_chunks, CHUNK)
    best = chunks.amax(-1).topk(min(CANDIDATES, num_chunks)).indices
    values, indices = chunks.gather(1, best.unsqueeze(-1).expand(-1, -1, CHUNK)).flatten(1).topk(CANDIDATES)
    return values, best.gather(1, indices // CHUNK) * CHUNK + indices % CHUNK


def split_heads(x: Tensor, attn: Any) -> Tensor:
    """Reshape (..., embed_dim) to (..., heads, head_dim)."""
    return x.view(*x.shape[:-1], attn.num_heads, attn.head_dim)


def query_key_value(attn: Any) -> nn.Linear:
    """Join the three projections of a self-attention into one, with the same dtype: fewer small products per step."""
    projections = (attn.q_proj, attn.k_proj, attn.v_proj)
    joined = nn.Linear(attn.embed_dim, 3 * attn.embed_dim, device="meta")
    joined.weight, joined.bias = (
        nn.Parameter(torch.cat([getattr(projection, name) for projection in projections]), requires_grad=False)
        for name in ("weight", "bias")
    )
    return joined


def attend_to_cache(
    x: Tensor, attn: Any, projection: nn.Linear, mask: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from the new token (R, d_model) to itself and the cached ones; also return the grown key and value.

    This is one scaled_dot_product_attention on the cache joined with the new token: OpenVINO's plugins recognize the
    pattern and use a cache that grows in place and is reordered by index. BART's scale is that operation's default.
    """
    query, new_key, new_value = linear(x, projection).view(-1, 3, attn.num_heads, 1, attn.head_dim).unbind(1)
    key, value = torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)
    y = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return linear(y.reshape(-1, attn.embed_dim), attn.out_proj), key, value


def attend_to_encoder(x: Tensor, attn: Any, mask: Tensor, key_transposed: Tensor, value: Tensor) -> Tensor:
    """Attend from R rows (R, d_model) to D pictures; a picture's rows are its queries, so that no key is copied."""
    pictures = key_transposed.shape[0]
    query = linear(x, attn.q_proj).view(pictures, -1, attn.num_heads, attn.head_dim).permute(0, 2, 1, 3)
    y = torch.matmul(torch.softmax(torch.matmul(query, key_transposed) + mask, dim=-1), value)
    return linear(y.permute(0, 2, 1, 3).reshape(-1, attn.embed_dim), attn.out_proj)
