"""Equal numbers have equal digests, and nothing else has."""

import numpy as np
import pytest

from fedretrain.digest import canonical_json, weights_digest

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "same",
    [np.asfortranarray(ARRAY), ARRAY.astype(">f4"), np.repeat(ARRAY, 2, axis=1)[:, ::2], ARRAY.copy()],
    ids=["fortran order", "big endian", "strided view", "copy"],
)
def test_storage_does_not_change_the_digest(same: np.ndarray) -> None:
    """Memory order, byte order and strides are not part of a model."""
    assert weights_digest([same]) == weights_digest([ARRAY])


def test_every_flipped_byte_changes_the_digest() -> None:
    """One bit anywhere in the numbers is another model."""
    seen = {weights_digest([ARRAY])}
    for position in range(ARRAY.nbytes):
        raw = bytearray(ARRAY.tobytes())
        raw[position] ^= 1
        seen.add(weights_digest([np.frombuffer(bytes(raw), np.float32).reshape(2, 3)]))
    assert len(seen) == ARRAY.nbytes + 1


def test_shape_dtype_order_and_split_are_part_of_the_digest() -> None:
    """The same bytes as another shape, dtype, order or number of arrays are another model."""
    a, b = ARRAY[0].copy(), ARRAY[1].copy()
    variants = [[ARRAY], [ARRAY.reshape(3, 2)], [ARRAY.reshape(6)], [ARRAY.view(np.int32)], [a, b], [b, a], [a], []]
    assert len({weights_digest(v) for v in variants}) == len(variants)


def test_scalars_and_empty_arrays_have_digests() -> None:
    """A count without shape and an array without numbers are told apart."""
    variants = [[np.int64(3)], [np.array([3])], [np.zeros((0, 2))], [np.zeros((2, 0))]]
    assert len({weights_digest(map(np.asarray, v)) for v in variants}) == 4


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    """Equal values have equal bytes; NaN has none."""
    assert canonical_json({"b": 1, "a": [1.5, "ä"]}) == canonical_json({"a": [1.5, "ä"], "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})
