"""The three graphs of a model folder on their devices: pixels to features to cross-attention to likely tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import openvino as ov

from florence_tagger.florence.decoding import Candidates, FloatArray, IntArray, Query
from florence_tagger.florence.devices import CORE, Compiler, RuntimeOptions
from florence_tagger.florence.folder import ModelFolder
from florence_tagger.schemas import UInt8Array

PROMPT_LENGTHS_COMPILED = 4
SMALL_VISION_BYTES = 32_000_000  # of weights; the bundled model has 4 MB, Florence-2-base 184 MB at fp16
STALE_TOKENS = 64  # of the cache that no picture has any use for, before they are dropped

MASK = "encoder_mask"

# What the decoder attends to of one picture, by its inputs' names: see `EncoderGraph` in convert/text.py.
CrossAttention = Mapping[str, FloatArray]


class Runtime:
    """A model folder, compiled: `encode` is for one thread, `decoder` for one, which may be another.

    On a CPU the default precision is f32 but for a large vision tower, which most of the work goes into and which bf16
    makes twice as fast. For the decoder, bound by memory, and for a small tower it gains next to nothing, and wherever
    it rounds it changes counts where two answers are nearly as likely.

    Raises:
        ModelError: a graph can't be read, or compiles on none of the devices asked for.
    """

    def __init__(self, folder: ModelFolder, options: RuntimeOptions, core: Any = CORE) -> None:
        self._compiler = Compiler(options, core)
        is_small = (folder.path / "vision.bin").stat().st_size < SMALL_VISION_BYTES
        # A graph that was read keeps its file in memory: none is kept beside what was compiled of it.
        vision = self._compiler.read(folder.path / "vision.xml")
        self._vision = self._compiler.compile(vision, "vision", "f32" if is_small else "").create_infer_request()
        self._encoder_path = folder.path / "encoder.xml"
        self._image_tokens = self._vision.get_output_tensor(0).shape[1]
        self.most_prompt_tokens = folder.max_positions - self._image_tokens
        self._encoder = lru_cache(PROMPT_LENGTHS_COMPILED)(self._compile_encoder)
        decoder, table = (self._compiler.read(folder.path / "decoder.xml") for _ in range(2))
        self._embedding = self._compiler.compile_lookup(embedding_of(table)).create_infer_request()
        self._embed = lru_cache(PROMPT_LENGTHS_COMPILED)(self._embed_prompt)
        decoder = self._compiler.compile(without_embedding(decoder), "decoder", "f32")
        self.decoder = Decoder(decoder.create_infer_request(), options.pictures)

    @property
    def devices(self) -> dict[str, str]:
        """The device of each graph by its name."""
        return self._compiler.devices

    @property
    def precisions(self) -> dict[str, str]:
        """The precision in which each graph computes, by its name."""
        return self._compiler.precisions

    def encode(self, pixels: UInt8Array, prompt_ids: tuple[int, ...]) -> CrossAttention:
        """What the decoder attends to for a picture, uint8 (H, W, 3) of the model's input size, and a prompt."""
        self._see(pixels)
        encoder = self._encoder(len(prompt_ids))
        encoder.set_tensor("image_features", self._vision.get_output_tensor(0))
        encoder.infer({"prompt_embeddings": self._embed(prompt_ids)}, share_inputs=True)
        attended = {output.any_name: encoder.get_tensor(output).data.copy() for output in encoder.model_outputs}
        return attended | {MASK: np.zeros((1, 1, 1, self._image_tokens + len(prompt_ids)), np.float32)}

    def image_features(self, pixels: UInt8Array) -> FloatArray:
        """What the vision tower makes of pixels (H, W, 3): features (1, tokens, d_model)."""
        self._see(pixels)
        features: FloatArray = self._vision.get_output_tensor(0).data.copy()
        return features

    def _see(self, pixels: UInt8Array) -> None:
        self._vision.infer({0: pixels[np.newaxis]}, share_inputs=True)

    def _compile_encoder(self, prompt_tokens: int) -> Any:
        graph = self._compiler.read(self._encoder_path)
        features, prompt = graph.inputs
        width = prompt.partial_shape[2].get_length()
        graph.reshape({features: features.partial_shape, prompt: [1, prompt_tokens, width]})
        return self._compiler.compile(graph, "encoder", "f32").create_infer_request()

    def _embed_prompt(self, prompt_ids: tuple[int, ...]) -> FloatArray:
        """Embeddings (1, P, d_model) of prompt ids."""
        self._embedding.infer([np.array(prompt_ids, np.int64)])
        rows: FloatArray = self._embedding.get_output_tensor(0).data.copy()
        return rows[np.newaxis]


def embedding_of(decoder: Any) -> Any:
    """The graph of the decoder's output `token_embeddings`: token ids to embeddings.

    The table is stored once, in the decoder's file; what is compiled of this graph looks rows up in it.
    """
    rows = decoder.output("token_embeddings").get_node().input_value(0)
    return ov.Model([rows], [decoder.input("input_ids").get_node()], "embedding")


def without_embedding(decoder: Any) -> Any:
    """The decoder's graph without the output `token_embeddings`, which its steps do not need."""
    decoder.remove_result(decoder.output("token_embeddings").get_node())
    return decoder


@dataclass
class Slot:
    """One of the pictures that are decoded together.

    Attributes:
        first_row: of the picture in the step before; its rows follow each other.
        start: how many tokens the cache had before the picture's first.
    """

    first_row: int
    start: int


class CrossMemory:
    """What the decoder attends to of its pictures, by the names of its inputs, one picture after the other.

    Pictures whose prompts are shorter than another's are filled up with zeros, which a mask hides.

    Attributes:
        arrays: float32, each (capacity, …).
        tokens: of picture and prompt that there is room for.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.arrays: dict[str, FloatArray] = {}
        self.tokens = 0

    def put(self, place: int, cross_attention: CrossAttention) -> None:
        """Puts a picture to the first place that is free."""
        tokens = cross_attention[MASK].shape[token_axis(MASK)]
        if tokens > self.tokens or (tokens < self.tokens and not place):
            self._make_room(tokens, place, cross_attention)
        self._fill(place, cross_attention)

    def move(self, place: int, to: int) -> None:
        """Moves a picture to another place."""
        for values in self.arrays.values():
            values[to] = values[place]

    def _make_room(self, tokens: int, pictures: int, like: CrossAttention) -> None:
        """Has room for so many tokens of each picture, as many as `like` has; the first pictures are kept."""
        old, self.tokens = self.arrays, tokens
        # the system gives memory to the places that are used
        self.arrays = {name: np.empty((self._capacity, *one.shape[1:]), np.float32) for name, one in like.items()}
        for place in range(pictures):
            self._fill(place, {name: values[place : place + 1] for name, values in old.items()})

    def _fill(self, place: int, cross_attention: CrossAttention) -> None:
        for name, values in cross_attention.items():
            room, axis = self.arrays[name][place], token_axis(name) - 1
            part, rest = np.split(room, [values.shape[axis + 1]], axis)
            part[:] = values[0]
            rest[:] = -np.inf if name == MASK else 0


def token_axis(name: str) -> int:
    """Which axis of an input of the decoder counts the tokens of picture and prompt."""
    return 2 if name.endswith("value") else 3


class Decoder:
    """The decoder graph and the pictures it is at, which come and go between steps.

    All rows grow the same cache by a token each step. A picture that comes later has no part in the tokens before,
    which a mask hides from it; once no picture has, they are dropped.

    Args:
        request: of the compiled graph, whose state the cache is.
        capacity: most pictures at a time.
    """

    def __init__(self, request: Any, capacity: int) -> None:
        self._request = request
        self._capacity = capacity
        shapes = {port.any_name: port.partial_shape for port in request.model_inputs}
        self._bans = shapes["banned_ids"][1].get_length()
        self._slots: list[Slot] = []
        self._cached = 0
        self._cross = CrossMemory(capacity)
        self._attended: tuple[int, Any] = (0, None)
        self._sound_row = 0

    @property
    def candidates(self) -> int:
        """How many next tokens of each row a step tells."""
        return int(self._request.model_outputs[0].partial_shape[1].get_length())

    def add(self, cross_attention: CrossAttention) -> None:
        """Adds a picture after the others."""
        if not self._slots:
            self._request.reset_state()
            self._cached = self._sound_row = 0
        self._cross.put(len(self._slots), cross_attention)
        self._slots.append(Slot(self._sound_row, self._cached))

    def remove(self, place: int) -> None:
        """Removes a picture; the last one takes its place."""
        last = self._slots.pop()
        if place < len(self._slots):
            self._slots[place] = last
            self._cross.move(len(self._slots), place)

    def step(self, queries: Sequence[Query]) -> list[Candidates]:
        """Answers a query of each picture, in the order of their places."""
        self._drop_stale()
        self._attend_to(len(queries))
        width = max(len(query.token_ids) for query in queries)
        # Rows that a picture does not need repeat its last one.
        used = [np.minimum(np.arange(width), len(query.token_ids) - 1) for query in queries]
        self._request.infer(
            {
                "input_ids": np.concatenate([query.token_ids[rows] for query, rows in zip(queries, used, strict=True)]),
                "position_ids": np.repeat([query.position for query in queries], width),
                "beam_idx": self._parents(queries, used),
                "attention_mask": self._mask(width),
                "banned_ids": ban_table(
                    [query.banned[row] for query, rows in zip(queries, used, strict=True) for row in rows], self._bans
                ),
            },
            share_inputs=True,
        )
        self._cached += 1
        log_probs, token_ids = (self._request.get_output_tensor(index).data for index in (0, 1))
        # Masked tokens count for nothing unless they are NaN: a newcomer must not inherit those of a broken neighbour.
        self._sound_row = int(np.argmax(np.isfinite(log_probs[:, 0])))
        answers = []
        for place, query in enumerate(queries):
            self._slots[place].first_row = place * width
            rows = slice(place * width, place * width + len(query.token_ids))
            answers.append(Candidates(log_probs[rows].copy(), token_ids[rows].copy()))
        return answers

    def _attend_to(self, pictures: int) -> None:
        """Points the graph to the first places of the memory for cross-attention."""
        arrays = self._cross.arrays
        if self._attended[0] == pictures and self._attended[1] is arrays:
            return
        for name, values in arrays.items():
            self._request.set_tensor(name, ov.Tensor(values[:pictures], shared_memory=True))
        self._attended = (pictures, arrays)

    def _parents(self, queries: Sequence[Query], used: Sequence[IntArray]) -> Any:
        """For each row the one of the step before that it continues; any, for a picture's first."""
        parents = [
            slot.first_row + query.parents[rows] for slot, query, rows in zip(self._slots, queries, used, strict=True)
        ]
        return np.concatenate(parents).astype(np.int32)

    def _mask(self, width: int) -> FloatArray:
        """What each row does not see of the cache and its own token: (rows, 1, 1, cached + 1)."""
        mask = np.zeros((len(self._slots), width, self._cached + 1), np.float32)
        for place, slot in enumerate(self._slots):
            mask[place, :, : slot.start] = -np.inf
        return mask.reshape(-1, 1, 1, self._cached + 1)

    def _drop_stale(self) -> None:
        """Drops the tokens at the front of the cache that no picture sees, once they are many."""
        stale = min(slot.start for slot in self._slots)
        if stale < STALE_TOKENS or stale == self._cached:
            return
        for state in self._request.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, stale:]))
        self._cached -= stale
        for slot in self._slots:
            slot.start -= stale


def ban_table(banned: Sequence[IntArray], width: int) -> IntArray:
    """Token ids of different numbers for each row as one array, filled up to `width` with -1."""
    table = np.full((len(banned), width), -1)
    for row, token_ids in zip(table, banned, strict=True):
        row[: len(token_ids)] = token_ids
    return table
