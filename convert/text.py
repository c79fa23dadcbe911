"""The text graphs: the encoder that prepares cross-attention, and one step of the decoder (BART, post-norm).

The weights are those of transformers' `BartEncoder` and `BartDecoder`. The encoder has no mask, since the serving side
never pads its input; the decoder is fed one token a step.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from convert.layers import attention, layer_norm, linear

CANDIDATES = 32  # beam search looks at two for each beam, and has 16 beams at most
CHUNK = 64  # of the vocabulary; Florence-2's 51,328 are 802 of them


def feed_forward(x: Tensor, layer: Any) -> Tensor:
    """The residual two-layer perceptron that ends an encoder or decoder layer."""
    hidden = linear(layer.activation_fn(linear(x, layer.fc1)), layer.fc2)
    return layer_norm(x + hidden, layer.final_layer_norm)


class EncoderGraph(nn.Module):
    """Image features (1, tokens, d_model) and prompt embeddings (1, P, d_model) to what the decoder attends to.

    Returns key 0, value 0, key 1, … of the decoder's cross-attention layers: keys (1, heads, head_dim, tokens + P),
    transposed and scaled for the product with the query, which spares both at each step, and values
    (1, heads, tokens + P, head_dim).
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
            outputs.append((split_heads(linear(x, attn.k_proj), attn) * attn.scaling).permute(0, 2, 3, 1))
            outputs.append(split_heads(linear(x, attn.v_proj), attn).permute(0, 2, 1, 3))
        return tuple(outputs)


class DecoderGraph(nn.Module):
    """One step of the decoder for R rows: as many for each of D pictures, one for each beam, picture after picture.

    `forward` takes of each row the last token (R), its position (R), what of the cache belongs to it as an additive
    mask (R, 1, 1, T + 1), the tokens that may not come next (R, bans), where -1 is none, and what of the encoder's
    tokens belongs to each picture, whose prompts differ in length, as another mask (D, 1, 1, E). Then come key and
    value of each layer: those of cross-attention as `EncoderGraph` gives them, one picture after the other (D, …), and
    the self-attention cache, each (R, heads, T, head_dim). It returns the `CANDIDATES` most likely next tokens, their
    log-probabilities and their ids, each (R, candidates) and the best first; the embeddings (R, d_model) of the tokens,
    which is how the runtime gets at the table for its prompts; and the grown cache.
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.decoder = cast(Any, language_model.decoder)
        self.projections: Any = nn.ModuleList(query_key_value(layer.self_attn) for layer in self.decoder.layers)
        self.vocabulary = self.decoder.embed_tokens.weight.shape[0]

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
        table, positions = self.decoder.embed_tokens, self.decoder.embed_positions
        embeddings = functional.embedding(input_ids, table.weight.float()) * table.embed_scale
        x = embeddings + functional.embedding(position_ids + positions.offset, positions.weight.float())
        x = layer_norm(x, self.decoder.layernorm_embedding)
        present: list[Tensor] = []
        layers = zip(self.decoder.layers, self.projections, cross_attention, self_key_values, strict=True)
        for layer, projection, cross, past in layers:
            y, *grown = attend_to_self(x, layer.self_attn, projection, attention_mask, *past)
            x = layer_norm(x + y, layer.self_attn_layer_norm)
            y = attend_to_picture(x, layer.encoder_attn, encoder_mask, *cross)
            x = feed_forward(layer_norm(x + y, layer.encoder_attn_layer_norm), layer)
            present += grown
        logits = functional.linear(x, table.weight.float())
        return *likeliest(logits, banned_ids, self.vocabulary), embeddings, *present


def likeliest(logits: Tensor, banned_ids: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The `CANDIDATES` likeliest tokens of each row that are not banned: their log-probabilities and ids.

    As in transformers' `generate`, bans apply to log-probabilities, which are not normalised again.
    """
    most = logits.amax(-1, keepdim=True)
    log_total = torch.log(torch.exp(logits - most).sum(-1, keepdim=True))
    bans = torch.where(banned_ids < 0, 0.0, -torch.inf)
    values, token_ids = top_tokens(logits.scatter_add(1, banned_ids.clamp(min=0), bans), vocabulary)
    return values - most - log_total, token_ids


def top_tokens(logits: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The `CANDIDATES` largest of logits (R, vocabulary) and their ids, the largest first.

    They lie in the chunks with the largest maxima, so that only those are sorted; sorting the whole vocabulary would
    take a tenth of the step.
    """
    padded = functional.pad(logits, (0, -vocabulary % CHUNK), value=-torch.inf)
    chunks = padded.view(-1, -(-vocabulary // CHUNK), CHUNK)
    best = chunks.amax(-1).topk(min(CANDIDATES, -(-vocabulary // CHUNK))).indices
    values, places = chunks.gather(1, best.unsqueeze(-1).expand(-1, -1, CHUNK)).flatten(1).topk(CANDIDATES)
    return values, best.gather(1, places // CHUNK) * CHUNK + places % CHUNK


def split_heads(x: Tensor, attn: Any) -> Tensor:
    """(..., embed_dim) to (..., heads, head_dim)."""
    return x.view(*x.shape[:-1], attn.num_heads, attn.head_dim)


def query_key_value(attn: Any) -> nn.Linear:
    """The three projections of a self-attention as one, in its weights' type: a step has many small products."""
    parts = (attn.q_proj, attn.k_proj, attn.v_proj)
    one = nn.Linear(attn.embed_dim, 3 * attn.embed_dim, device="meta")
    one.weight, one.bias = (
        nn.Parameter(torch.cat([getattr(part, name) for part in parts]), requires_grad=False)
        for name in ("weight", "bias")
    )
    return one


def attend_to_self(
    x: Tensor, attn: Any, projection: nn.Linear, mask: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the new token (R, d_model) to itself and the cached ones; also returns the grown caches.

    It is one scaled_dot_product_attention on cache and new token joined, the pattern from which OpenVINO's plugins make
    a cache that grows in place and is reordered by index. BART's scale is that operation's default.
    """
    query, new_key, new_value = linear(x, projection).view(-1, 3, attn.num_heads, 1, attn.head_dim).unbind(1)
    key, value = torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)
    y = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return linear(y.reshape(-1, attn.embed_dim), attn.out_proj), key, value


def attend_to_picture(x: Tensor, attn: Any, mask: Tensor, key_transposed: Tensor, value: Tensor) -> Tensor:
    """Attention of R rows (R, d_model) to D pictures: a picture's rows stand where queries do, nothing is copied."""
    pictures = key_transposed.shape[0]
    query = linear(x, attn.q_proj).view(pictures, -1, attn.num_heads, attn.head_dim).permute(0, 2, 1, 3)
    y = torch.matmul(torch.softmax(torch.matmul(query, key_transposed) + mask, dim=-1), value)
    return linear(y.permute(0, 2, 1, 3).reshape(-1, attn.embed_dim), attn.out_proj)
