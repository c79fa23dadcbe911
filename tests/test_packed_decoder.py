"""The packed decoder does what the stateful one does, here both on the CPU; `gpu.check` runs it on a GPU plugin."""

from functools import cache
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_tagger.config import DEFAULT_MODEL
from florence_tagger.florence.decoding import StepInput, TopK
from florence_tagger.florence.devices import Compiler, RuntimeOptions
from florence_tagger.florence.graphs import make_decoder
from florence_tagger.florence.packed_decoder import Ancestry, PackedDecoder, picture_on_device
from florence_tagger.florence.self_test import SELF_TEST, Difference, Lockstep, Move, compare, run_self_test
from tests.devices import FakeCore

CAPACITY = 8
LAYERS, HEADS, WIDTH = 3, 8, 24
F32_TOLERANCE = 1e-3


@cache
def decoders() -> tuple[PackedDecoder, Any]:
    """The packed decoder on a GPU that the CPU plays, and the stateful one on the CPU, both in f32."""
    devices = ("GPU", "CPU")
    options = [RuntimeOptions(device, "f32", max_pictures=CAPACITY) for device in devices]
    packed, stateful = (make_decoder(Compiler(one, FakeCore(["CPU", "GPU"])), DEFAULT_MODEL, one) for one in options)
    assert isinstance(packed, PackedDecoder)
    return packed, stateful


def picture(seed: int, tokens: int) -> dict[str, Any]:
    """What a decoder attends to of a picture with a prompt of some length."""
    random = np.random.default_rng(seed)
    shapes = {"key": (1, HEADS, WIDTH, tokens), "value": (1, HEADS, tokens, WIDTH)}
    return {
        f"cross_attention.{layer}.{kind}": random.standard_normal(shape).astype(np.float32)
        for layer in range(LAYERS)
        for kind, shape in shapes.items()
    }


def pairs(*lengths: int) -> list[tuple[Any, Any]]:
    """Pictures for both decoders."""
    memory = Compiler(RuntimeOptions("GPU", "f32"), FakeCore(["CPU", "GPU"])).memory
    assert memory is not None
    pictures = [picture(seed, length) for seed, length in enumerate(lengths)]
    return [(picture_on_device(one, memory), one) for one in pictures]


def test_self_test_of_a_sound_decoder_finds_nothing_but_rounding() -> None:
    difference = run_self_test(*decoders(), pairs(30, 27, 29), CAPACITY)
    assert difference.steps == len(SELF_TEST)
    assert not difference.exceeds(F32_TOLERANCE)


MOVES = st.builds(
    Move,
    join=st.integers(0, 3),
    leave=st.sampled_from([None, None, None, *range(CAPACITY)]),
    clear=st.sampled_from([False] * 9 + [True]),
    width=st.integers(1, 4),
    bans=st.integers(0, 6),
    repeats=st.integers(1, 3),
)


@settings(max_examples=25, deadline=None)
@given(moves=st.lists(MOVES, min_size=1, max_size=60), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_any_plan_gives_what_the_stateful_decoder_gives(moves: list[Move], lengths: list[int]) -> None:
    lockstep = Lockstep(*decoders(), pairs(*lengths), CAPACITY)
    try:
        assert not sum((lockstep.step(move) for move in moves), Difference()).exceeds(F32_TOLERANCE)
    finally:
        lockstep.clear()


def test_long_answers_are_packed_and_keep_only_slots_in_use() -> None:
    packed, stateful = decoders()
    lockstep = Lockstep(packed, stateful, pairs(20, 20), CAPACITY)
    difference = lockstep.step(Move(join=2)) + sum((lockstep.step(Move(width=3)) for _ in range(120)), Difference())
    assert not difference.exceeds(F32_TOLERANCE)
    # 121 steps of 6 rows wrote over 700 slots; beams share most of their tokens
    assert packed.cache.num_slots < 450
    lockstep.clear()


def test_a_picture_that_is_not_a_number_spoils_no_other() -> None:
    packed, _ = decoders()
    broken = {name: np.full_like(value, np.nan) for name, value in picture(0, 20).items()}
    alone = answers(packed, [picture(1, 20)])
    together = answers(packed, [broken, picture(1, 20)])
    for one, other in zip(alone, together, strict=True):
        assert np.isnan(other[0].log_probs).all()
        assert compare(step_input(1), other[1], one[0]).worst < F32_TOLERANCE


def answers(decoder: PackedDecoder, pictures: list[dict[str, Any]]) -> list[list[TopK]]:
    """What a decoder gives for a few steps of pictures that are decoded together."""
    memory = Compiler(RuntimeOptions("GPU", "f32"), FakeCore(["CPU", "GPU"])).memory
    assert memory is not None
    for one in pictures:
        decoder.add(picture_on_device(one, memory))
    given = [decoder.step([step_input(position)] * len(pictures)) for position in range(6)]
    for _ in pictures:
        decoder.remove(0)
    return given


def step_input(position: int) -> StepInput:
    return StepInput(np.array([5]), np.zeros(1, np.int64), position, (np.empty(0, np.int64),))


def test_bans_of_rows_with_different_numbers_of_them() -> None:
    packed, stateful = decoders()
    (on_device, on_host), *_ = pairs(20)
    for decoder, one in ((packed, on_device), (stateful, on_host)):
        decoder.add(one)
        decoder.step([step_input(0)])
    first = np.array([0])  # the first token, which a row without bans must not lose
    bans = ((first, first[:0]), (np.array([7, 7, 9]), first), (first[:0], np.array([0, 5, 0, 0])))
    for position, banned in enumerate(bans, start=1):
        asked = StepInput(np.array([5, 6]), np.zeros(2, np.int64), position, banned)
        assert not compare(asked, packed.step([asked])[0], stateful.step([asked])[0]).exceeds(F32_TOLERANCE)
    for decoder in (packed, stateful):
        decoder.remove(0)


@pytest.mark.parametrize("fault", ["log_probs", "banned", "nan", "other tokens"])
def test_differences_are_told_from_rounding(fault: str) -> None:
    log_probs, token_ids = np.linspace(-1, -9, 32, dtype=np.float32)[np.newaxis], np.arange(32)[np.newaxis]
    reference = TopK(log_probs, token_ids)
    wrong = {
        "log_probs": TopK(log_probs + np.float32(1.4), token_ids),
        "banned": TopK(log_probs, np.where(token_ids == 31, 99, token_ids)),
        "nan": TopK(np.full_like(log_probs, np.nan), token_ids),
        "other tokens": TopK(log_probs, token_ids + 100),
    }[fault]
    asked = StepInput(np.array([5]), np.zeros(1, np.int64), 0, (np.array([99]),))
    assert compare(asked, wrong, reference).exceeds(0.5)
    assert not compare(asked, TopK(log_probs + np.float32(0.1), token_ids), reference).exceeds(0.5)


def test_slots_in_use_are_numbered_anew_and_attended_to_as_before() -> None:
    ancestry = Ancestry()
    ancestry.select(np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert ancestry.grow(2)[:, 0].tolist() == [2, 3]  # behind a blank slot of each part
    ancestry.select(np.array([1, 1]), np.ones(2, np.int64))
    assert ancestry.grow(4)[:, :2].tolist() == [[3, 4], [3, 5]]
    ancestry.select(np.array([0, 1]), np.full(2, 2))
    main, recent = ancestry.renumber(1)  # slot 2 belonged to a beam that was given up
    assert main.tolist() == [0]
    assert recent[:3].tolist() == [2, 3, 4]
    assert set(recent[3:].tolist()) == {0}
    assert ancestry.grow(len(main) + len(recent))[:, :2].tolist() == [[1, 2], [1, 3]]


def test_views_of_device_memory_share_it() -> None:
    memory = Compiler(RuntimeOptions("GPU", "f16"), FakeCore(["CPU", "GPU"])).memory
    assert memory is not None
    tensor = memory.upload(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert memory.element_type == ov.Type.f16
    assert memory.download(memory.view(tensor, (2, 4))).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    memory.copy_item(tensor, 2, tensor, 0)
    assert memory.download(tensor)[0].tolist() == [8, 9, 10, 11]


def test_a_picture_that_can_not_join_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = decoders()
    expected = answers(packed, [picture(1, 20)])
    longer = picture_on_device(picture(2, 37), packed.memory)
    with monkeypatch.context() as patched:
        patched.setattr(packed.memory, "empty", out_of_memory)
        with pytest.raises(RuntimeError, match="no memory"):
            packed.add(longer)
    assert compare(step_input(0), answers(packed, [picture(1, 20)])[0][0], expected[0][0]).worst < F32_TOLERANCE
    assert np.isfinite(answers(packed, [picture(2, 37)])[0][0].log_probs).all()


def out_of_memory(shape: Any) -> Any:
    raise RuntimeError("no memory")
