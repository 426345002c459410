"""Codecs: what comes back within the bound each states, sizes that the contract decides, and bytes nobody wrote."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedretrain.codecs import CODECS, Codec, make_codec
from fedretrain.contract import VariableSpec
from fedretrain.digest import sha256
from fedretrain.errors import ConfigurationError, RejectedUpdate
from fedretrain.job import NamedConfig

F32 = np.float32
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=20)
ARRAYS = hnp.arrays(F32, SHAPES, elements=FINITE | st.floats(-(2.0**-20), 2.0**-20, width=32) | st.just(0.0))


def codec(name: str, **settings: Any) -> Codec:
    return make_codec(NamedConfig(name=name, **settings))


def spec_of(values: np.ndarray, rule: Any = "train") -> VariableSpec:
    return VariableSpec(shape=values.shape, dtype=values.dtype.name, rule=rule)


def back(coded: Codec, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Encoded and decoded; the size is the announced one."""
    spec = spec_of(values)
    payload = coded.encode(values, spec, seed)
    assert (payload.shape, payload.dtype.name) == (coded.travelling(spec).shape, coded.travelling(spec).dtype)
    found = coded.decode(payload, spec)
    assert (found.shape, found.dtype) == (values.shape, values.dtype)
    return found


def within_half(values: np.ndarray, found: np.ndarray) -> bool:
    v, most = values.astype(float), float(np.abs(values).max())
    return bool((np.abs(found - v) <= 2.0**-11 * np.abs(v) + 2.0**-39 * most + 2.0**-150).all())


def within_block_steps(values: np.ndarray, found: np.ndarray, block: int = 16) -> bool:
    flat, got = values.reshape(-1).astype(float), found.reshape(-1).astype(float)
    for i in range(0, flat.size, block):
        most = np.abs(flat[i : i + block]).max()
        bound = (1 + 2.0**-15) * most / 127 if most >= 127 * 2.0**-126 else most
        if (np.abs(got[i : i + block] - flat[i : i + block]) > bound).any():
            return False
    return True


def the_largest_and_nothing_else(values: np.ndarray, found: np.ndarray, share: float = 0.25) -> bool:
    v = values.astype(float)
    sent = found != 0
    rest = np.square(np.where(sent, 0, v)).sum()
    kept = math.ceil(share * v.size)
    return bool((found[sent] == values[sent]).all()) and rest <= (1 - kept / v.size) * np.square(v).sum() * (1 + 1e-9)


BOUNDS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray, np.ndarray], bool]]] = {
    "float32": ({}, np.array_equal),
    "float16": ({}, within_half),
    "int8": ({"block": 16}, within_block_steps),
    "topk": ({"share": 0.25}, the_largest_and_nothing_else),
}


@pytest.mark.parametrize("name", BOUNDS)
@example(values=np.full(40, np.finfo(F32).max))  # rounding up would overflow
@example(values=np.full(40, 2.0**-149, F32))
@given(values=ARRAYS)
@settings(max_examples=80, deadline=None)
def test_what_comes_back_is_within_the_stated_bound(name: str, values: np.ndarray) -> None:
    """Any finite values, the largest float32 and subnormal ones among them, come back as the docstring promises."""
    given, holds = BOUNDS[name]
    coded = codec(name, **given)
    found = back(coded, values)
    assert holds(values, found) if coded.codes(spec_of(values)) else np.array_equal(values, found)


def test_int8_is_unbiased_and_seeded() -> None:
    """The mean over seeds is the value itself; one seed gives the same bytes, another others."""
    values = np.random.default_rng(0).normal(size=256).astype(F32)
    coded, spec = codec("int8"), spec_of(values)
    mean = np.mean([back(coded, values, seed) for seed in range(2000)], axis=0)
    step = np.abs(values).max() / 127
    assert np.abs(mean - values).max() < 5 * step / math.sqrt(4 * 2000)
    once, again, other = (coded.encode(values, spec, seed).tobytes() for seed in (1, 1, 2))
    assert once == again != other


def test_scales_for_blocks_keep_what_one_scale_loses_of_a_heavy_tail() -> None:
    """Of Student's t with two degrees of freedom int8 loses a third of the length with one scale, 4 % with blocks."""

    def lost(block: int) -> float:
        draws = [np.random.default_rng(seed).standard_t(2, 65_536).astype(F32) for seed in range(5)]
        coded = codec("int8", block=block)
        return float(np.mean([np.linalg.norm(back(coded, v) - v) / np.linalg.norm(v) for v in draws]))

    assert lost(65_536) > 0.3
    assert lost(256) < 0.05


def test_a_variable_longer_than_a_chunk_is_coded_as_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in pieces, the last of them not a whole block, changes no bound."""
    monkeypatch.setattr("fedretrain.codecs.int8.CHUNK", 64)
    monkeypatch.setattr("fedretrain.codecs.float16.CHUNK", 64)
    monkeypatch.setattr("fedretrain.codecs.base.CHUNK", 64)
    values = np.random.default_rng(0).normal(size=1003).astype(F32)
    assert within_block_steps(values, back(codec("int8", block=16), values))
    assert within_half(values, back(codec("float16"), values))


GOLDEN = {  # SHA-256 of the bytes for ``golden_values``: another NumPy, or another machine, must write the same
    "float16": "670cc92bb5813ece6f26d79f058fa6853b25e4e97e7414a66e60a31de89f6675",
    "int8": "5dea241afb6f3c406e7b9d8db59c1cd13b3616604dca993316277e7dd8596da5",
    "topk": "d0fe49f49ba99e8980b0a9c7ef8ecadd835c7c464ac54ee362b9ba21fc119d66",
}


def golden_values() -> np.ndarray:
    return ((np.arange(3000) * 7919 % 3001 - 1500) / 4096).astype(F32)


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_the_same_everywhere(name: str) -> None:
    """The bytes that are signed do not depend on machine or version."""
    values = golden_values()
    assert sha256(codec(name).encode(values, spec_of(values), 7).tobytes()) == GOLDEN[name]


def test_ties_go_to_the_lowest_positions() -> None:
    """Which of equal magnitudes travel is decided by position, not by how a machine sorts."""
    found = back(codec("topk", share=0.2), np.array([1, -3, 2, 3, -3, 0, 3, 1, 0, 0], F32))
    assert found.tolist() == [0, -3, 0, 3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "values", [np.ones((40, 4)), np.ones(600, "int64"), np.zeros((0, 3), F32), np.ones((), F32)], ids=lambda v: v.dtype
)
def test_what_no_codec_is_for_travels_as_it_is(name: str, values: np.ndarray) -> None:
    """Other dtypes, nothing, and what coding would make larger; and any moving statistic, whatever its size."""
    statistics = np.ones(600, F32)
    for array, spec in ((values, spec_of(values)), (statistics, spec_of(statistics, "average"))):
        assert codec(name).travelling(spec) == spec
        assert codec(name).encode(array, spec, 0) is array
        assert codec(name).decode(array, spec) is array


def spoilt(name: str, at: slice, value: Any) -> tuple[str, slice, Any]:
    return name, at, np.frombuffer(value.tobytes(), np.uint8)


FOREIGN = {
    "a scale that is NaN": spoilt("int8", slice(0, 4), F32(np.nan)),
    "a scale that is infinite": spoilt("int8", slice(0, 4), F32(np.inf)),
    "a negative scale": spoilt("int8", slice(0, 4), F32(-1)),
    "a step of -128": spoilt("int8", slice(-1, None), np.int8(-128)),
    "an exponent out of reach": spoilt("float16", slice(0, 2), np.int16(-32_768)),
    "a position past the end": spoilt("topk", slice(8, 12), np.uint32(300)),
    "a position twice": spoilt("topk", slice(4, 8), np.uint32(0)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_bytes_that_no_encoder_writes_are_refused(what: str) -> None:
    """Each is ``malformed``, and nothing is put anywhere for it."""
    name, at, value = FOREIGN[what]
    values = np.zeros(300, F32)
    values[:3] = 1  # topk sends the positions 0, 1 and 2
    coded, spec = codec(name), spec_of(values)
    payload = coded.encode(values, spec, 0)
    payload[at] = value
    with pytest.raises(RejectedUpdate) as caught:
        coded.decode(payload, spec)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("name", ["float16", "int8", "topk"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_decoded_or_refused(name: str, data: st.DataObject) -> None:
    """Whatever a site sends in the right size, a decoder returns numbers of the right shape or refuses."""
    coded, spec = codec(name), VariableSpec(shape=(7, 43), dtype="float32", rule="train")
    payload = data.draw(hnp.arrays(np.uint8, coded.travelling(spec).shape))
    with suppress(RejectedUpdate):
        assert coded.decode(payload, spec).shape == (7, 43)


@pytest.mark.parametrize("name", ["float16", "int8", "topk"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_coded(name: str, bad: float) -> None:
    """NaN and infinity raise at the sender."""
    values = np.array([1.0, bad] * 200, F32)
    with pytest.raises(ValueError, match="finite"):
        codec(name).encode(values, spec_of(values), 0)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"name": "int4"}, "unknown codec 'int4'; did you mean 'int8'?"),
        ({"name": "int8", "share": 0.1}, "share: unknown setting of the codec int8; it has block"),
        ({"name": "topk", "share": 0.7}, "share: expected less than 0.5"),
    ],
)
def test_what_a_job_may_name(config: dict[str, Any], text: str) -> None:
    """Another codec, another setting, or one out of range is named in one line."""
    with pytest.raises(ConfigurationError, match=text.replace("?", r"\?")):
        make_codec(NamedConfig(**config))
