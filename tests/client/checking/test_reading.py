"""What training refuses, a check counts: bad values by column, labels that the contract does not have by name."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.checking.reading import Found, read
from client.sitefile import load_site, reader
from fedretrain.contract import Contract, Feature, InputSpec, OutputSpec
from fedretrain.dataset import Dataset, check_dataset, from_arrays, unusable
from fedretrain.errors import DataMismatch
from tests.client.guarded import job

NAN = float("nan")


def contract(**changes: Any) -> Contract:
    """Columns age, height, weight from 0 to 100, each watched; labels "no" and "yes"."""
    plain = job().contract
    narrow = plain.inputs[0].model_copy(update={"low": 0.0, "high": 100.0})
    features = tuple(
        Feature(name=name, kind="column", input="x", index=i, edges=(50.0,))
        for i, name in enumerate(("age", "height", "weight"))
    )
    return plain.model_copy(update={"inputs": (narrow,), "features": features, **changes})


def output(kind: str, labels: tuple[str, ...], shape: tuple[int, ...]) -> tuple[OutputSpec, ...]:
    return (OutputSpec(name="y", shape=shape, kind=kind, loss="-", labels=labels),)


def found(arrays: dict[str, Any], of: Contract | None = None, labels: tuple[str, ...] = ()) -> Found:
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    return read(lambda wider: from_arrays(plain, wider, partial=True), of or contract(), labels)


def test_bad_values_are_counted_by_column_and_their_rows_are_in_nothing_else() -> None:
    """NaN and infinity are missing, what is outside the range is impossible; two rows of five are complete."""
    x = [[1, 2, 3], [NAN, 2, 3], [np.inf, 101, 3], [4, 5, 6], [1, 2, -1]]
    got = found({"x": x, "y": [0, 1, 1, 1, 0]})
    assert [int(rows.sum()) for rows in got.missing.values()] == [2, 0, 0]
    assert [int(rows.sum()) for rows in got.impossible.values()] == [0, 1, 1]
    assert got.complete.tolist() == [True, False, False, True, False]
    assert got.data.x["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert got.data.x["x"].dtype == np.float32
    assert got.labels["y"].tolist() == [0, 1]


def test_labels_by_name_beyond_the_contract() -> None:
    """Those asked for have their own count, all others are unknown, none of them is a label to the model."""
    arrays = {"x": np.ones((5, 3)), "y": [0, 1, 2, 3, 1], "labels": ["yes", "no", "maybe", "never"]}
    got = found(arrays, labels=("maybe",))
    assert got.labels["y"].tolist() == [1, 0, 2, 3, 0]  # no, yes, maybe, unknown
    assert got.data.y["y"].tolist() == [1, 0, -1, -1, 0]
    assert got.labelled["y"].all()


@pytest.mark.parametrize(
    ("kind", "shape", "labels", "y", "places", "plain"),
    [
        ("multiclass", (2,), ("no", "yes"), [[0], [7], [1]], [0, 2, 1], [0, -1, 1]),
        ("multiclass", (2,), ("no", "yes"), [NAN, 1.5, 1], [-1, 2, 1], [-1, -1, 1]),
        ("binary", (1,), ("0", "1"), [0, 1, NAN], [0, 1, -1], [[0], [1], [NAN]]),
        ("onehot", (2,), ("no", "yes"), [[0, 1], [NAN, NAN], [0.9, 0.1]], [1, -1, 0], [[0, 1], [NAN] * 2, [0.9, 0.1]]),
    ],
)
def test_every_kind_of_label_without_names(  # noqa: PLR0917 - a row of the table
    kind: str, shape: tuple[int, ...], labels: tuple[str, ...], y: Any, places: list[int], plain: Any
) -> None:
    """Positions past the contract's are unknown, a missing label is none."""
    got = found({"x": np.ones((3, 3)), "y": y}, contract(outputs=output(kind, labels, shape)))
    assert got.labels["y"].tolist() == places
    np.testing.assert_allclose(got.data.y["y"], np.asarray(plain, got.data.y["y"].dtype), atol=1e-6)


def test_several_labels_of_an_example_count_each() -> None:
    """A multilabel output's columns by name, those of unknown names as one; regressions keep their numbers."""
    several = contract(outputs=output("multilabel", ("a", "b"), (2,)))
    arrays = {"x": np.ones((2, 3)), "y": [[1, 0, 1, 1], [0, 1, 0, 0]], "labels": ["b", "a", "c", "d"]}
    got = found(arrays, several)
    assert got.labels["y"].tolist() == [[False, True, True], [True, False, False]]  # a, b, unknown
    assert got.data.y["y"].tolist() == [[0, 1], [1, 0]]
    number = found({"x": np.ones((2, 3)), "y": [0.5, NAN]}, contract(outputs=output("regression", (), (1,))))
    assert number.labels == {}
    assert number.data.y["y"].shape == (2, 1)


def test_data_without_labels_are_read() -> None:
    """None of an output, or none at all."""
    got = found({"x": np.ones((3, 3))})
    assert got.labels == {}
    assert got.data.y["y"].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bool"])
def test_unusable_is_what_training_refuses(dtype: str) -> None:
    """One value at a time: either nothing is said against it, or training refuses it."""
    spec = InputSpec(name="x", shape=(1,), dtype=dtype, low=None if dtype == "bool" else -2.0)
    of = contract(inputs=(spec,), features=())
    for value in (0, 1, 0.5, -1, -3, 300, 1e10, 1e39, np.inf, -np.inf, NAN):
        data = Dataset({"x": np.array([[value]])}, {"y": np.array([0])})
        missing, impossible = unusable(data.x["x"], spec)
        assert not (missing & impossible).any()
        try:
            check_dataset(data, of)
        except DataMismatch:
            assert (missing | impossible).all(), value
        else:
            assert not (missing | impossible).any(), value


def test_another_form_is_refused_as_ever() -> None:
    """Shape, kind, rows and preprocessing; nothing can be counted then."""
    for arrays, code in (
        ({"x": np.ones((3, 2)), "y": [0, 1, 1]}, "data-shape"),
        ({"x": np.full((3, 3), "a"), "y": [0, 1, 1]}, "data-dtype"),
        ({"x": np.ones((0, 3)), "y": np.zeros(0)}, "data-empty"),
        ({"x": [[NAN, 1, 1], [1, 1, 1], [1, 1, 1]], "y": [0, 1]}, "label-shape"),
        ({"x": np.ones((3, 3)), "y": [0, 1, 1], "timestamp": [1.0]}, "data-shape"),
        ({"x": np.ones((3, 3)), "y": [0, 1, 1], "sample_weight": ["a", "b", "c"]}, "data-dtype"),
        ({"x": np.ones((3, 3)), "y": ["no", "no", "yes"]}, "data-dtype"),
    ):
        with pytest.raises(DataMismatch) as caught:
            found(arrays)
        assert caught.value.code == code
    with pytest.raises(DataMismatch, match="data-preprocessing"):
        found({"x": np.ones((1, 3)), "y": [0]}, contract(preprocessing="scaled"))


def test_a_csv_with_gaps_texts_and_new_names_is_counted(tmp_path: Path) -> None:
    """An empty cell and a text are missing, an empty label is none, an unknown one counts; training refuses them."""
    rows = ["age,height,weight,y", "1,2,3,no", ",2,3,yes", "1,?,3,yes", "1,2,3,maybe", "1,2,3,"]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "site.toml").write_text('[data]\nformat = "csv"\npath = "a.csv"\nlabel = "y"\n')
    load = reader(load_site(tmp_path / "site.toml"), tmp_path)
    got = read(load, contract())
    assert [int(rows.sum()) for rows in got.missing.values()] == [1, 1, 0]
    assert got.labels["y"].tolist() == [0, 2, -1]
    with pytest.raises(DataMismatch):
        load(contract())


def test_a_table_without_labels_can_be_checked_and_not_trained_on(tmp_path: Path) -> None:
    """Where site.toml names no label; training says which column it wants."""
    (tmp_path / "a.csv").write_text("age,height,weight\n1,2,3\n4,5,6\n")
    (tmp_path / "site.toml").write_text('[data]\nformat = "csv"\npath = "a.csv"\n')
    load = reader(load_site(tmp_path / "site.toml"), tmp_path)
    assert read(load, contract()).data.y["y"].tolist() == [-1, -1]
    with pytest.raises(DataMismatch, match="data-missing at y: expected its column in"):
        load(contract())


def test_the_sites_own_reader_is_called_with_the_signed_contract(tmp_path: Path) -> None:
    """It need not know of wider label spaces; positions that it returns are the contract's."""
    code = "def load(contract):\n    assert contract.outputs[0].labels == ('no', 'yes')\n    import numpy as np\n"
    (tmp_path / "own_reader_b.py").write_text(code + "    return {'x': np.ones((2, 3)), 'y': np.array([1, 2])}\n")
    (tmp_path / "site.toml").write_text('[data]\nformat = "function"\nfunction = "own_reader_b:load"\npath = "."\n')
    got = read(reader(load_site(tmp_path / "site.toml"), tmp_path), contract(), ("maybe",))
    assert got.labels["y"].tolist() == [1, 3]


def test_a_dataset_of_the_sites_own_is_normalised() -> None:
    """Times stay with all rows, so that a window's bad values can be counted."""
    data = Dataset({"x": np.array([[1.0, 2, NAN], [1, 2, 3]])}, {"y": np.array([0, 1])}, time=np.array([5.0, 6.0]))
    got = read(lambda _: data, contract())
    assert got.time is not None
    assert got.time.tolist() == [5, 6]
    assert got.data.time is not None
    assert got.data.time.tolist() == [6]
    assert dataclasses.replace(got.data).sample_weight is None
