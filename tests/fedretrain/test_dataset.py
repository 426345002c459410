"""Data are checked before anything is trained, and an error holds no value of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.dataset import Dataset, as_arrays, check_dataset, load_npz
from fedretrain.errors import DataMismatch

TABLE = InputSpec(name="table", shape=(4,), dtype="float32", low=-8, high=8, columns=("age", "dose", "site", "time"))
IMAGE = InputSpec(name="image", shape=(2, 3, 1), dtype="float32", low=0, high=1)
TOKENS = InputSpec(name="tokens", shape=(None,), dtype="int32", low=0, high=99)
CLASSES = OutputSpec(name="out", shape=(3,), kind="multiclass", loss="", labels=("a", "b", "c"))
SECRET = 7.125  # a value that must not show up in an error


def contract(*inputs: InputSpec, outputs: tuple[OutputSpec, ...] = (CLASSES,), preprocessing: Any = None) -> Contract:
    return Contract(
        inputs=inputs or (TABLE,),
        outputs=outputs,
        preprocessing=preprocessing,
        architecture="",
        base="",
        variables=(),
    )


def table(n: int = 6, **more: Any) -> Dataset:
    x = np.linspace(-1, 1, n * 4, dtype=np.float32).reshape(n, 4)
    return Dataset(**({"x": {"table": x}, "y": {"out": np.arange(n) % 3}} | more))


def refused(data: Dataset, by: Contract) -> DataMismatch:
    with pytest.raises(DataMismatch) as caught:
        check_dataset(data, by)
    assert str(SECRET) not in str(caught.value)
    return caught.value


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(4)), elements=st.floats(-8, 8, width=32)), st.data())
def test_data_in_range_pass_and_one_bad_value_names_its_column(x: np.ndarray, data: st.DataObject) -> None:
    """Any table within the bounds passes; NaN, infinity or a value outside in one cell is found where it is."""
    y = {"out": np.zeros(len(x), int)}
    check_dataset(Dataset({"table": x}, y), contract())
    row, column = data.draw(st.integers(0, len(x) - 1)), data.draw(st.integers(0, 3))
    bad, code = data.draw(
        st.sampled_from(
            [(np.nan, "data-not-finite"), (np.inf, "data-not-finite"), (8.5, "data-range"), (-9, "data-range")]
        )
    )
    x = x.copy()
    x[row, column] = bad
    error = refused(Dataset({"table": x}, y), contract())
    assert error.code == code
    assert error.where == f"table column {column} ({TABLE.columns[column]})"  # type: ignore[index]


@pytest.mark.parametrize(
    ("shape", "where"),
    [
        ((6, 3), "table column 3 (time)"),
        ((6, 5), "table column 4"),
        ((6, 2, 2), "table"),
        ((6,), "table"),
        ((), "table"),
    ],
)
def test_wrong_columns_are_named(shape: tuple[int, ...], where: str) -> None:
    """The first missing or surplus column is named (fault 32); another rank names the input."""
    error = refused(table(x={"table": np.full(shape, SECRET)}), contract())
    assert (error.code, error.where) == ("data-shape", where)
    assert "[n, 4]" in error.expected


def test_a_pixel_is_named_by_its_place() -> None:
    """In an input of several axes a value is found by its index."""
    x = np.full((2, 2, 3, 1), 0.5)
    x[1, 1, 2, 0] = np.nan
    assert refused(Dataset({"image": x}, {"out": np.zeros(2, int)}), contract(IMAGE)).where == "image column 1,2,0"


def test_a_bound_holds_in_the_inputs_own_precision() -> None:
    """float32(0.1) is greater than 0.1 and still the bound itself."""
    spec = TABLE.model_copy(update={"low": -0.1, "high": 0.1})
    check_dataset(table(x={"table": np.full((6, 4), 0.1, np.float32)}), contract(spec))


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (np.full((6, 4), "1"), "data-dtype"),
        (np.full((6, 4), 1j), "data-dtype"),
        (np.full((6, 4), 1e300), "data-not-finite"),  # a double that float32 cannot hold
    ],
)
def test_what_does_not_convert_is_refused(x: np.ndarray, code: str) -> None:
    """Text, complex numbers and numbers too large for the input's dtype."""
    assert refused(table(x={"table": x}), contract()).code == code


def test_whole_numbers_where_the_input_wants_integers() -> None:
    """Doubles pass as tokens if they are whole; a length may be free; fractions and large numbers do not pass."""
    y = {"out": np.zeros(2, int)}
    check_dataset(Dataset({"tokens": np.array([[1.0, 2.0], [3.0, 99.0]])}, y), contract(TOKENS))
    assert refused(Dataset({"tokens": np.array([[1.0], [SECRET]])}, y), contract(TOKENS)).code == "data-dtype"
    assert refused(Dataset({"tokens": np.array([[1], [2**40]])}, y), contract(TOKENS)).code == "data-range"


def test_an_empty_partition_is_named() -> None:
    """Fault 35."""
    assert refused(table(0), contract()).code == "data-empty"


def test_preprocessing_must_be_the_contracts() -> None:
    """Another one, or none, is refused where the contract names one; where it does not, anything goes."""
    wants = contract(preprocessing="pixels/16")
    check_dataset(table(preprocessing="pixels/16"), wants)
    check_dataset(table(preprocessing="anything"), contract())
    for said in ("pixels/255", None):
        assert refused(table(preprocessing=said), wants).code == "data-preprocessing"


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (np.ones(5), "data-shape"),
        (np.array([1, 1, np.nan, 1, 1, 1]), "data-not-finite"),
        (np.array([1, 1, -SECRET, 1, 1, 1]), "data-range"),
        (np.zeros(6), "data-range"),
        (np.full(6, "1"), "data-dtype"),
    ],
)
def test_sample_weights_are_checked(weights: np.ndarray, code: str) -> None:
    """One for each row, finite, none negative, not all zero."""
    error = refused(table(sample_weight=weights), contract())
    assert (error.code, error.where) == (code, "sample_weight")


def test_several_inputs_and_outputs_are_found_by_name(tmp_path: Path) -> None:
    """Arrays x.NAME and y.NAME; a missing one is named, and rows must agree."""
    other = OutputSpec(name="value", shape=(1,), kind="regression", loss="")
    wants = contract(TABLE, IMAGE, outputs=(CLASSES, other))
    arrays = {
        "x.table": np.zeros((2, 4)),
        "x.image": np.zeros((2, 2, 3, 1)),
        "y.out": np.zeros(2, int),
        "y.value": np.ones(2),
    }
    data = load_npz(write(tmp_path / "a.npz", **arrays, unrelated=np.zeros(1)), wants)
    check_dataset(data, wants)
    assert as_arrays(data, wants).y["value"].shape == (2, 1)
    for name in arrays:
        rest = {k: v for k, v in arrays.items() if k != name}
        with pytest.raises(DataMismatch) as caught:
            load_npz(write(tmp_path / "b.npz", **rest), wants)
        assert (caught.value.code, caught.value.where) == ("data-missing", name)
        error = refused(load_npz(write(tmp_path / "c.npz", **rest, **{name: arrays[name][:1]}), wants), wants)
        assert error.code in ("data-shape", "label-shape")


def test_arrays_are_cast_for_keras(tmp_path: Path) -> None:
    """Inputs in the contract's dtype, classes as int32 [n], weights float32; slices and preprocessing are kept."""
    file = write(
        tmp_path / "a.npz",
        x=np.ones((2, 4), np.int64),
        y=np.array([[1.0], [2.0]]),
        sample_weight=np.array([1, 2]),
        slice=np.array(["ward", "home"]),
        preprocessing="none",
    )
    data = load_npz(file, contract())
    check_dataset(data, contract())
    data = as_arrays(data, contract())
    assert data.x["table"].dtype == np.float32
    assert data.y["out"].dtype == np.int32
    assert data.y["out"].tolist() == [1, 2]
    assert data.sample_weight is not None
    assert data.sample_weight.dtype == np.float32
    assert data.slices is not None
    assert data.slices.tolist() == ["ward", "home"]
    assert data.preprocessing == "none"
    assert len(data) == 2


def test_take_picks_rows_of_everything() -> None:
    """Rows, labels, weights and slices stay together."""
    data = table(sample_weight=np.arange(6.0), slices=np.array(list("abcdef"))).take(np.array([4, 1]))
    assert data.sample_weight is not None
    assert data.slices is not None
    assert (data.sample_weight.tolist(), data.slices.tolist(), data.y["out"].tolist()) == ([4, 1], ["e", "b"], [1, 1])
    assert len(data) == 2


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (np.array([0, 86_400]), [0, 86_400]),
        (np.array(["1970-01-02", "1970-01-01T00:00:01"], "datetime64[s]"), [86_400, 1]),
        (np.array([0.5, 1e9]), [0.5, 1e9]),
        (np.array(["now", "then"]), "data-dtype"),
        (np.array([1, np.nan]), "data-not-finite"),
        (np.array(["1970-01-02", "NaT"], "datetime64[s]"), "data-not-finite"),
        (np.array([1.0]), "data-shape"),
    ],
)
def test_times_are_seconds_since_1970(tmp_path: Path, times: np.ndarray, seconds: list[float] | str) -> None:
    """From whole or real numbers and datetime64; anything else, and a row without a time, is refused."""
    file = write(tmp_path / "a.npz", x=np.ones((2, 4)), y=np.zeros(2, int), timestamp=times)
    if isinstance(seconds, str):
        with pytest.raises(DataMismatch) as caught:
            check_dataset(load_npz(file, contract()), contract())
        assert (caught.value.code, caught.value.where) == (seconds, "timestamp")
        return
    data = load_npz(file, contract())
    check_dataset(data, contract())
    assert data.time is not None
    assert (data.time.dtype, data.time.tolist()) == (np.float64, seconds)
    assert data.take(np.array([1])).time.tolist() == seconds[1:]  # type: ignore[union-attr]


def test_a_site_may_lack_the_labels_of_some_outputs(tmp_path: Path) -> None:
    """They are -1 or NaN in the shape of labels; a holdout, and data without any labels, may not."""
    value = OutputSpec(name="value", shape=(1,), kind="regression", loss="")
    wants = contract(outputs=(CLASSES, value))
    for output, missing in (("out", "value"), ("value", "out")):
        file = write(tmp_path / f"{output}.npz", x=np.ones((2, 4)), **{f"y.{output}": np.ones(2)})
        with pytest.raises(DataMismatch):
            load_npz(file, wants)
        data = load_npz(file, wants, partial=True)
        check_dataset(data, wants)
        data = as_arrays(data, wants)
        assert data.unlabelled == data.take(np.array([0])).unlabelled == (missing,)
        assert data.y[output].ravel().tolist() == [1, 1]
        filled = data.y[missing]
        assert (filled == -1).all() if missing == "out" else np.isnan(filled).all()
        assert (filled.shape, filled.dtype) == (((2,), np.int32) if missing == "out" else ((2, 1), np.float32))
    with pytest.raises(DataMismatch):
        load_npz(write(tmp_path / "x.npz", x=np.ones((2, 4))), wants, partial=True)


def test_files_that_are_no_npz_are_unreadable(tmp_path: Path) -> None:
    """Missing, empty, text, a single npy, truncated, a flipped byte, and arrays that need pickle."""
    good = write(tmp_path / "good.npz", x=np.zeros((50, 4)), y=np.zeros(50, int)).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    contents = {"empty": b"", "text": b"x,y\n1,2\n", "truncated": good[:-30], "half": good[: len(good) // 2]}
    for name, content in (contents | {"flipped": bytes(flipped)}).items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    np.save(tmp_path / "single.npz.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": SECRET}] * 2, dtype=object), y=np.zeros(2, int))
    (tmp_path / "folder.npz").mkdir()
    for file in [*(f"{n}.npz" for n in [*contents, "flipped", "pickled", "missing", "folder"]), "single.npz.npy"]:
        with pytest.raises(DataMismatch) as caught:
            load_npz(tmp_path / file, contract())
        assert caught.value.code == "data-unreadable", file
        assert str(SECRET) not in str(caught.value)
        assert "\n" not in str(caught.value)
