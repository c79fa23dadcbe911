"""Stateless decoder graph: the cache is a set of input and output tensors, packed for a changing number of rows.

A converted decoder keeps each row's cache as state and reorders it by `beam_idx`, which OpenVINO's CPU plugin does by
index, without copying. The GPU plugin returns wrong results as soon as the number of rows changes (see
`devices.WORKAROUNDS`), and its alternatives copy the entire cache at each step. This graph never reorders the cache.
The keys and values of all tokens of all rows form one sequence of slots, and a mask limits each row to the slots of its
own prefix: tree attention, as in speculative decoding (Miao et al., SpecInfer, 2023, section 4.2). Beams share the
slots of their common prefix.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

MASKED = -1e4  # added to masked scores: exp(-1e4) is 0 in every precision, and f16 (down to -65,504) can represent it
PARTS = ("main", "recent")  # of the cache
CROSS_ATTENTION = "cross_attention"  # name prefix of the encoder's outputs and the decoder's inputs for a picture
LAST_TWO_SWAPPED = [0, 1, 3, 2]
ROWS, HEADS, TOKENS, WIDTH = range(4)  # axes of queries, keys and values as the converted graph has them


def pack_cache(decoder: Any, element_type: Any) -> Any:
    """Return a converted decoder with a packed cache in `element_type` instead of states.

    These inputs replace `beam_idx` and `attention_mask`:

    - `ancestors`: int32 (R, T), the slots that each row attends to, including its own, in any order; slots are repeated
      if there are fewer than T. Slots are numbered through `main`, then `recent`, then the rows of this step.
    - `main.<n>` and `recent.<n>`: keys (even n) and values (odd n) of the layers, (1, heads, slots, head_dim), with at
      least one slot.

    The additional outputs `grown.<n>` are `recent` with the slots of this step's rows appended.

    Raises:
        ValueError: the graph has no self-attention of the form that the converter writes.
    """
    ancestors = parameter("ancestors", [-1, -1], ov.Type.i32)
    caches: list[Any] = []
    grown: list[Any] = []
    mask = None
    for attention in find_attentions(decoder):
        is_finite = contain_nan(attention)
        query, keys, values = (attention.input_value(index) for index in range(3))
        heads, width = (query.get_partial_shape()[axis].get_length() for axis in (HEADS, WIDTH))
        inputs = [
            parameter(f"{part}.{len(grown) + index}", [1, heads, -1, width], element_type)
            for part in PARTS
            for index in (0, 1)
        ]
        main, recent = [to_f32(cache) for cache in inputs[:2]], [to_f32(cache) for cache in inputs[2:]]
        # The second input of the Concat after each state: the keys or values of this step's tokens.
        added = [rows_to_tokens(joined.get_node().input_value(1)) for joined in (keys, values)]
        if mask is None:
            mask = ancestor_mask(ancestors, [part[0] for part in (main, recent, added)])
        attended = attend(ops.multiply(rows_to_tokens(query), constant(width**-0.5)), mask, [main, recent, added])
        invalid = ops.select(is_finite, constant(0), constant(np.nan))
        attention.output(0).replace(ops.add(rows_to_tokens(attended), invalid).output(0))
        caches += inputs
        joined = [ops.concat(list(pair), TOKENS) for pair in zip(recent, added, strict=True)]
        grown += [result(f"grown.{len(grown) + index}", cache, element_type) for index, cache in enumerate(joined)]
    if mask is None:
        raise ValueError("The decoder has no self-attention that could be packed.")
    replaced = {"beam_idx", "attention_mask"}
    kept = [node for node in decoder.get_parameters() if not replaced & node.output(0).get_names()]
    packed = ov.Model([*decoder.get_results(), *grown], [*kept, ancestors, *caches], "decoder")
    return copy_runtime_options(packed, decoder)


def repack_graph(decoder: Any) -> Any:
    """Return the graph that gathers selected slots of a packed decoder's cache.

    Its inputs are the decoder's `main.<n>` and `recent.<n>`, and the indices of the slots to keep: `main` and `recent`,
    int32 (M) and (N), at least one each. Its outputs are `packed.<n>`, (1, heads, M + N, head_dim).
    """
    kept, axis = [parameter(part, [-1], ov.Type.i32) for part in PARTS], ops.constant(TOKENS)
    inputs, outputs = [*kept], []
    for index in range(len(outputs_named(decoder, "grown."))):
        caches = [like(decoder.input(f"{part}.{index}")) for part in PARTS]
        packed = [ops.gather(cache, slots, axis) for cache, slots in zip(caches, kept, strict=True)]
        inputs += caches
        outputs.append(result(f"packed.{index}", ops.concat(packed, TOKENS), caches[0].get_element_type()))
    return ov.Model(outputs, inputs, "repack")


def pad_graph(port: Any) -> Any:
    """Return the graph that pads `source`, shaped like `port`, with its own tokens at `repeated`, int32 (K).

    The last operation is a Concat: the GPU plugin infers a wrong shape for a Gather that ends a graph
    (`devices.WORKAROUNDS`).
    """
    source, repeated = like(port, "source"), parameter("repeated", [-1], ov.Type.i32)
    padded = ops.concat([source, ops.gather(source, repeated, ops.constant(TOKENS))], TOKENS)
    return ov.Model([result("padded", padded, source.get_element_type())], [source, repeated], "pad")


def find_attentions(decoder: Any) -> list[Any]:
    """Return the self-attention nodes of a converted decoder in layer order."""
    return [node for node in decoder.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]


def contain_nan(attention: Any) -> Any:
    """Replace a row's NaN and infinite values before they enter the cache, which all rows read.

    Masked slots have the weight 0, but 0 x NaN is NaN.

    Returns:
        A boolean mask (R, 1, 1, 1) of the rows whose values are all finite; the output of the others must become NaN.
    """
    split = attention.input_value(0).get_node().input_value(0).get_node()  # of the joint query, key and value product
    projected = split.input_value(0)  # (R, 3, heads, 1, head_dim)
    is_finite = ops.is_finite(projected)
    split.input(0).replace_source_output(ops.select(is_finite, projected, constant(0)).output(0))
    row_is_finite = ops.reduce_logical_and(is_finite, ops.constant(np.array([1, 2, 3, 4])), keep_dims=True)
    return ops.squeeze(row_is_finite, ops.constant(np.array([4])))


def attend(query: Any, mask: Any, parts: Sequence[Sequence[Any]]) -> Any:
    """Attend from rows (1, heads, R, head_dim) to several sequences of slots as if they were one sequence.

    The scores of all parts are concatenated, because they are small; keys and values are not.

    Args:
        query: scaled queries.
        mask: additive mask, (1, 1, R, slots of all parts).
        parts: keys and values of each part, each (1, heads, slots, head_dim).
    """
    scores = ops.concat([ops.matmul(query, keys, False, True) for keys, _ in parts], -1)
    weights = ops.softmax(ops.add(scores, mask), -1)
    attended, begin = [], ops.constant(np.array([0]))
    for keys, values in parts:
        end = ops.add(begin, length_of(keys))
        part = ops.slice(weights, begin, end, ops.constant(np.array([1])), ops.constant(np.array([-1])))
        attended.append(ops.matmul(part, values, False, False))
        begin = end
    return reduce(ops.add, attended)


def ancestor_mask(ancestors: Any, keys: Sequence[Any]) -> Any:
    """Return the additive mask of all keys, (1, 1, R, slots): 0 at `ancestors` (R, T), and `MASKED` elsewhere."""
    slots = reduce(ops.add, map(length_of, keys))
    hidden = ops.broadcast(constant(MASKED), ops.concat([length_of(ancestors, 0), slots], 0))
    visible = ops.broadcast(constant(0), ops.shape_of(ancestors, ov.Type.i64))
    mask = ops.scatter_elements_update(hidden, ancestors, visible, ops.constant(np.int64(1)))
    return ops.unsqueeze(mask, ops.constant(np.array([0, 1])))


def keys_by_token(graph: Any) -> Any:
    """Change the graph's cross-attention keys to the layout of its values, (D, heads, tokens, head_dim).

    The GPU plugin's attention reads this layout in place. With the converted layout, (D, heads, head_dim, tokens), it
    would transpose the keys of all pictures at each step.
    """
    for port in inputs_named(graph, CROSS_ATTENTION):
        if (name := port.get_any_name()).endswith("key"):
            old, shape = port.get_node(), list(port.get_partial_shape())
            new = parameter(name, [shape[axis] for axis in LAST_TWO_SWAPPED], port.get_element_type())
            old.output(0).replace(ops.transpose(new, ops.constant(np.array(LAST_TWO_SWAPPED))).output(0))
            graph.add_parameters([new])
            graph.remove_parameter(old)
    for old in graph.get_results():
        if (name := old.output(0).get_any_name()).startswith(CROSS_ATTENTION) and name.endswith("key"):
            value = old.input_value(0)
            value.set_names(value.get_names() - {name})
            swapped = ops.transpose(value, ops.constant(np.array(LAST_TWO_SWAPPED)))
            graph.add_results([result(name, swapped, value.get_element_type())])
            graph.remove_result(old)
    graph.validate_nodes_and_infer_types()
    return graph


def ban_exactly(decoder: Any) -> Any:
    """Return a converted decoder that writes bans into a mask instead of adding them to the logits.

    Sums of -inf are wrong on GPUs at f16. A row with fewer bans than others repeats one of them in `banned_ids`; a row
    without bans has -1 throughout. The mask depends on no other value, so that a wait for its ids happens before other
    work is queued.
    """
    (old,) = [node for node in decoder.get_ops() if node.get_type_name() == "ScatterElementsUpdate"]
    logits, banned = old.input_value(0), narrow_ids(decoder)
    none, vocabulary = ops.constant(np.int32(0)), logits.get_partial_shape()[1].get_length()
    shape = ops.concat([length_of(banned, 0), ops.constant(np.array([vocabulary]))], 0)
    banning = ops.select(ops.less(banned, none), constant(0), constant(-np.inf))
    indices = ops.maximum(banned, none)
    mask = ops.scatter_elements_update(ops.broadcast(constant(0), shape), indices, banning, ops.constant(np.int64(1)))
    old.output(0).replace(ops.add(logits, mask).output(0))
    return decoder


def narrow_ids(decoder: Any) -> Any:
    """Replace the input `banned_ids` by an int32 input of any width, and return it."""
    old = decoder.input("banned_ids").get_node()
    banned = parameter("banned_ids", [-1, -1], ov.Type.i32)
    old.output(0).replace(ops.convert(banned, ov.Type.i64).output(0))
    decoder.add_parameters([banned])
    decoder.remove_parameter(old)
    return banned


def retype_inputs(graph: Any, names: str | tuple[str, ...], element_type: Any) -> Any:
    """Change the element type of inputs whose name begins with one of `names`; the graph still computes in f32."""
    for port in inputs_named(graph, names):
        old = port.get_node()
        new = parameter(port.get_any_name(), port.get_partial_shape(), element_type)
        old.output(0).replace(to_f32(new).output(0))
        graph.add_parameters([new])
        graph.remove_parameter(old)
    graph.validate_nodes_and_infer_types()
    return graph


def retype_outputs(graph: Any, element_type: Any) -> Any:
    """Change the element type of all outputs."""
    for old in graph.get_results():
        port = old.output(0)
        name, value = port.get_any_name(), old.input_value(0)
        value.set_names(value.get_names() - {name})
        graph.add_results([result(name, value, element_type)])
        graph.remove_result(old)
    graph.validate_nodes_and_infer_types()
    return graph


def copy_runtime_options(graph: Any, source: Any) -> Any:
    """Copy the plugin options of `source`, such as the scale of activations on GPUs, to `graph` and return it."""
    if source.has_rt_info(["runtime_options"]):
        graph.set_rt_info(source.get_rt_info(["runtime_options"]), ["runtime_options"])
    return graph


def parameter(name: str, shape: Any, element_type: Any) -> Any:
    """Return a named input."""
    node = ops.parameter(ov.PartialShape(shape), element_type, name=name)
    node.output(0).set_names({name})
    return node


def result(name: str, value: Any, element_type: Any) -> Any:
    """Return a named output of `element_type`."""
    node = ops.result(to_type(value, element_type))
    node.output(0).get_tensor().set_names({name})
    return node


def constant(value: float) -> Any:
    """Return a float32 scalar."""
    return ops.constant(np.float32(value))


def like(port: Any, name: str = "") -> Any:
    """Return an input with the shape and element type of `port`, and its name unless `name` is given."""
    return parameter(name or port.get_any_name(), port.get_partial_shape(), port.get_element_type())


def inputs_named(graph: Any, names: str | tuple[str, ...]) -> list[Any]:
    """Return the inputs of a graph whose name begins with one of `names`."""
    return [port for port in graph.inputs if port.get_any_name().startswith(names)]


def outputs_named(graph: Any, names: str) -> list[Any]:
    """Return the outputs of a graph whose name begins with `names`."""
    return [port for port in graph.outputs if port.get_any_name().startswith(names)]


def to_f32(value: Any) -> Any:
    """Return a value converted to f32, or unchanged if it has that type."""
    return to_type(value, ov.Type.f32)


def to_type(value: Any, element_type: Any) -> Any:
    """Return a value converted to `element_type`, or unchanged if it has that type."""
    return value if value.get_element_type() == element_type else ops.convert(value, element_type)


def rows_to_tokens(value: Any) -> Any:
    """Transpose (R, heads, 1, width) to (1, heads, R, width), or back."""
    return ops.transpose(value, ops.constant(np.array([TOKENS, HEADS, ROWS, WIDTH])))


def length_of(value: Any, axis: int = TOKENS) -> Any:
    """Return the length of a tensor's axis, int64 (1)."""
    return ops.gather(ops.shape_of(value, ov.Type.i64), ops.constant(np.array([axis])), ops.constant(0))
