"""Every format of a site's data gives the same examples, and names what does not fit without a value of it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.sitefile import load_site, reader
from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.dataset import Dataset, as_arrays, check_dataset
from fedretrain.errors import DataMismatch

from .guarded import job

AURELIA = "Winterbottom"
COLUMNS = ("age", "height", "weight")
ROWS = 20_000  # more than two chunks of a csv
X = np.random.default_rng(0).normal(size=(ROWS, 3)).round(3)
Y = np.random.default_rng(1).integers(0, 2, ROWS)


def contract(**changes: Any) -> Contract:
    """Three named columns, labels "no" and "yes"."""
    return job().contract.model_copy(update=changes)


def output(kind: str, labels: tuple[str, ...], shape: tuple[int, ...] | None = None) -> tuple[OutputSpec, ...]:
    return (OutputSpec(name="y", shape=shape or (len(labels),), kind=kind, loss="-", labels=labels),)  # type: ignore[arg-type]


def pictures(*shape: int, labels: tuple[str, ...] = ("no", "yes")) -> Contract:
    return contract(inputs=(InputSpec(name="x", shape=shape, dtype="float32"),), outputs=output("multiclass", labels))


def read(folder: Path, data: str, of: Contract | None = None) -> Dataset:
    """What a site with these lines in [data] reads, checked and as a trainer takes it."""
    (folder / "site.toml").write_text(f"[data]\n{data}\n")
    of = of or contract()
    found = reader(load_site(folder / "site.toml"), folder)(of)
    check_dataset(found, of)
    return as_arrays(found, of)


def write_csv(path: Path, columns: dict[str, Any], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def table(rows: slice = slice(None)) -> dict[str, Any]:
    """The examples as columns, with some that nobody asks for, in another order than the model's."""
    names = np.array(["no", "yes"])[Y[rows]]
    return {"id": np.arange(ROWS)[rows], "y": names, **{c: X[rows, i] for i, c in reversed(list(enumerate(COLUMNS)))}}


def same(data: Dataset, rows: slice = slice(None)) -> None:
    assert np.array_equal(data.x["x"], X[rows].astype("float32"))
    assert np.array_equal(data.y["y"], Y[rows])


def test_npz_is_read_as_it_is(tmp_path: Path) -> None:
    """And site.toml may name the preprocessing that the file does not."""
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    data = read(tmp_path, 'format = "npz"\npath = "d.npz"\npreprocessing = "scaled"', contract(preprocessing="scaled"))
    same(data)


def test_csv_files_are_one_table_read_by_the_contracts_names(tmp_path: Path) -> None:
    """Whatever the order of the columns; label names become positions; byte order mark and blank lines do no harm."""
    write_csv(tmp_path / "a.csv", table(slice(0, 9000)))
    write_csv(tmp_path / "b.csv", table(slice(9000, None)))
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes() + b"\n\n")
    same(read(tmp_path, 'format = "csv"\npath = "*.csv"\nlabel = "y"'))


def test_csv_columns_may_have_the_sites_own_names(tmp_path: Path) -> None:
    """In the order of site.toml, with a delimiter and weights of their own."""
    own = {"Alter": X[:50, 0], "Höhe": X[:50, 1], "Gewicht": X[:50, 2], "Diagnose": Y[:50], "n": np.full(50, 2.0)}
    write_csv(tmp_path / "a.csv", own, ";")
    text = 'format = "csv"\npath = "a.csv"\ndelimiter = ";"\nlabel = "Diagnose"\nsample_weight = "n"\n'
    data = read(tmp_path, text + 'columns = ["Alter", "Höhe", "Gewicht"]')
    same(data, slice(0, 50))
    assert data.sample_weight is not None
    assert data.sample_weight.tolist() == [2.0] * 50


def test_columns_take_the_inputs_shape(tmp_path: Path) -> None:
    """Six columns are a 2x3x1 input."""
    columns = {f"p{i}": np.arange(4) + i for i in range(6)}
    write_csv(tmp_path / "a.csv", {**columns, "y": Y[:4]})
    names = ", ".join(f'"{name}"' for name in columns)
    data = read(tmp_path, f'format = "csv"\npath = "a.csv"\nlabel = "y"\ncolumns = [{names}]', pictures(2, 3, 1))
    assert data.x["x"].shape == (4, 2, 3, 1)
    assert data.x["x"][1].ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_several_inputs_and_outputs_have_columns_by_name(tmp_path: Path) -> None:
    """With every kind of label: one-hot by name, several columns, numbers."""
    write_csv(
        tmp_path / "a.csv",
        {
            "age": [1, 2],
            "left": [3, 4],
            "right": [5, 6],
            "kind": ["b", "a"],
            "p": [0, 1],
            "q": [1, 1],
            "size": [2.5, 3],
        },
    )
    of = contract(
        inputs=(
            InputSpec(name="age", shape=(1,), dtype="float32"),
            InputSpec(name="sides", shape=(2,), dtype="int32", columns=("left", "right")),
        ),
        outputs=(
            OutputSpec(name="kind", shape=(2,), kind="onehot", loss="-", labels=("a", "b")),
            OutputSpec(name="flags", shape=(2,), kind="multilabel", loss="-", labels=("p", "q")),
            OutputSpec(name="size", shape=(1,), kind="regression", loss="-"),
        ),
    )
    labels = '[data.label]\nkind = "kind"\nflags = ["p", "q"]\nsize = "size"'
    data = read(tmp_path, f'format = "csv"\npath = "a.csv"\n{labels}', of)
    assert data.x["age"].tolist() == [[1], [2]]
    assert data.x["sides"].tolist() == [[3, 5], [4, 6]]
    assert data.y["kind"].tolist() == [[0, 1], [1, 0]]
    assert data.y["flags"].tolist() == [[0, 1], [1, 1]]
    assert data.y["size"].tolist() == [[2.5], [3]]


def test_times_are_read_as_people_write_them(tmp_path: Path) -> None:
    """ISO 8601 with and without a zone, dates, and seconds; what is no time is refused without the value."""
    moments = ["2026-06-01T12:00:00+02:00", "2026-06-01 10:00", "2026-06-01", "1780308000"]
    write_csv(tmp_path / "a.csv", {**table(slice(0, 4)), "seen": moments})
    text = 'format = "csv"\npath = "a.csv"\nlabel = "y"\ntimestamp = "seen"'
    data = read(tmp_path, text)
    assert data.time is not None
    assert data.time.tolist() == [1780308000, 1780308000, 1780272000, 1780308000]
    write_csv(tmp_path / "a.csv", {**table(slice(0, 4)), "seen": [*moments[:3], AURELIA]})
    with pytest.raises(DataMismatch) as caught:
        read(tmp_path, text)
    assert caught.value.where == "seen"
    assert AURELIA not in str(caught.value)


def test_a_table_may_lack_labels_of_an_output(tmp_path: Path) -> None:
    """Where site.toml names the others; a name that is no output's is a slip and refused."""
    write_csv(tmp_path / "a.csv", table(slice(0, 4)))
    two = (*output("multiclass", ("no", "yes")), OutputSpec(name="z", shape=(1,), kind="regression", loss="-"))
    text = 'format = "csv"\npath = "a.csv"\n[data.label]\ny = "y"'
    data = read(tmp_path, text, contract(outputs=two))
    assert data.unlabelled == ("z",)
    assert np.isnan(data.y["z"]).all()
    with pytest.raises(DataMismatch) as caught:
        read(tmp_path, text + '\nzz = "id"', contract(outputs=two))
    assert (caught.value.code, caught.value.where) == ("data-missing", "z")


MEANINGS = [
    (("no", "yes"), ["no", "yes", " no "], [0, 1, 0]),
    (("no", "yes"), [0, "1", "1.0"], [0, 1, 1]),
    (("1", "2", "3"), [1, "3", "2.0"], [0, 2, 1]),
    (("1", "2", "3"), [0], None),
    (("no", "yes"), ["maybe"], None),
    (("no", "yes"), [2], None),
    (("no", "yes"), [0.5], None),
    (("no", "yes"), [""], None),
    (("no", "yes"), ["nan"], None),
]


@pytest.mark.parametrize(("names", "values", "expected"), MEANINGS)
def test_a_label_means_its_name_and_a_position_only_where_no_name_is_a_number(
    tmp_path: Path, names: tuple[str, ...], values: list[Any], expected: list[int] | None
) -> None:
    """So that the same value means the same at every site; anything else is unknown."""
    columns = {column: [0.5] * len(values) for column in COLUMNS}
    write_csv(tmp_path / "a.csv", {**columns, "y": values})
    of = contract(outputs=output("multiclass", names))
    if expected is not None:
        assert read(tmp_path, 'format = "csv"\npath = "a.csv"\nlabel = "y"', of).y["y"].tolist() == expected
    else:
        with pytest.raises(DataMismatch) as caught:
            read(tmp_path, 'format = "csv"\npath = "a.csv"\nlabel = "y"', of)
        assert (caught.value.code, caught.value.where) == ("label-unknown", "y")


def changed(**columns: Any) -> dict[str, Any]:
    return {**table(slice(0, 3)), **columns}


CSV = 'format = "csv"\npath = "*.csv"\nlabel = "y"'
BAD: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "a column missing": (
        lambda p: write_csv(p, {k: v for k, v in changed().items() if k != "weight"}), CSV, "data-missing", "weight"),
    "the label missing": (
        lambda p: write_csv(p, {k: v for k, v in changed().items() if k != "y"}), CSV, "data-missing", "y"),
    "a text among numbers": (lambda p: write_csv(p, changed(age=[1, AURELIA, 3])), CSV, "data-dtype", "age"),
    "an empty cell": (lambda p: write_csv(p, changed(age=[1, "", 3])), CSV, "data-not-finite", "age"),
    "NaN": (lambda p: write_csv(p, changed(age=[1, "nan", 3])), CSV, "data-not-finite", "age"),
    "an unknown label": (lambda p: write_csv(p, changed(y=["no", AURELIA, "no"])), CSV, "label-unknown", "y"),
    "only names": (lambda p: p.write_text(",".join(changed())), CSV, "data-empty", "x"),
    "nothing at all": (lambda p: p.write_text(""), CSV, "data-missing", "age"),
    "a short row": (lambda p: p.write_text(",".join(changed()) + f"\n1,{AURELIA}\n"), CSV, "data-unreadable", "file"),
    "another encoding": (lambda p: p.write_bytes(b"\xff\xfe\xff"), CSV, "data-unreadable", "file"),
    "two columns of a name": (
        lambda p: p.write_text("age,age,height,weight,y\n1,1,1,1,no"), CSV, "data-unreadable", "file"),
    "no file": (lambda _: None, CSV, "data-unreadable", "file"),
    "an encoding nobody knows": (
        lambda p: write_csv(p, changed()), CSV + '\nencoding = "ebcdic-x"', "data-unreadable", "file"),
    "no function": (lambda _: None, 'format = "function"\nfunction = "no_such:thing"', "data-unreadable", "function"),
    "no pictures": (lambda p: (p.parent / "i").mkdir(), 'format = "images"\npath = "i"', "data-empty", "x"),
    "an unknown class": (
        lambda p: (p.parent / "i" / AURELIA).mkdir(parents=True),
        'format = "images"\npath = "i"', "label-unknown", "y"),
    "no folder": (lambda _: None, 'format = "images"\npath = "i"', "data-unreadable", "file"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_named_without_a_value(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The code, the column or output, what is expected; neither a cell nor a file's name."""
    make, text, code, where = BAD[what]
    make(tmp_path / f"{AURELIA}.csv")
    with pytest.raises(DataMismatch) as caught:
        read(tmp_path, text, pictures(2, 2, 1) if "images" in text else None)
    assert caught.value.code == code
    assert where in caught.value.where
    assert AURELIA not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None


OWN = """
import numpy as np
from fedretrain.errors import DataMismatch

def load(contract):
    columns = [c for spec in contract.inputs for c in spec.columns]
    return {"x": np.ones((4, len(columns))), "y": [0, 1, 0, 1]}

def broken(contract):
    raise ValueError("Winterbottom")

def shapeless(contract):
    return 3
"""


def test_a_function_of_the_sites_own_gives_the_arrays_of_an_npz(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is found beside site.toml; what it raises leaves as a code, with its place but not its text in the log."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_reader_of_tests.py").write_text(OWN)
    text = 'format = "function"\npath = "code"\nfunction = "own_reader_of_tests:'
    data = read(tmp_path, text + 'load"')
    assert data.x["x"].shape == (4, 3)
    for name in ("broken", "shapeless"):
        with pytest.raises(DataMismatch, match="data-unreadable at the site's data function"):
            read(tmp_path, f'{text}{name}"')
    assert "own_reader_of_tests" in caplog.text
    assert AURELIA not in caplog.text


def test_parquet_files_are_one_table(tmp_path: Path) -> None:
    """Numbers and texts in columns, in several files; only what is needed is read."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow comes with the extra 'parquet'")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(table(slice(0, 9000))), tmp_path / "a.parquet")
    parquet.write_table(pa.table(table(slice(9000, None))), tmp_path / "b.parquet")
    text = 'format = "parquet"\npath = "*.parquet"\nlabel = "y"'
    same(read(tmp_path, text))
    for kind, seconds in (("datetime64[ns]", 0.5), ("datetime64[D]", 0)):
        moments = np.array(["1970-01-01T00:00:00.5"] * 3, kind)
        parquet.write_table(pa.table({**table(slice(0, 3)), "seen": moments}), tmp_path / "c.parquet")
        dated = read(tmp_path, text.replace("*", "c") + '\ntimestamp = "seen"')
        assert dated.time is not None
        assert dated.time.tolist() == [seconds] * 3
    (tmp_path / "c.parquet").unlink()
    for bad, code, where in (
        ({"age": [1.0, None, 3.0]}, "data-not-finite", "age"),
        ({"age": ["a", "b", "c"]}, "data-dtype", "age"),
        ({"y": [0, 1, 2]}, "label-unknown", "y"),
    ):
        parquet.write_table(pa.table(changed(**bad)), tmp_path / "a.parquet")
        with pytest.raises(DataMismatch) as caught:
            read(tmp_path, text)
        assert (caught.value.code, where in caught.value.where) == (code, True)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataMismatch, match="data-unreadable"):
        read(tmp_path, text)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's operator is told what to install."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataMismatch, match=r"pip install 'fedretrain\[parquet\]'"):
        read(tmp_path, 'format = "parquet"\npath = "a.parquet"\nlabel = "y"')


@pytest.mark.slow
@pytest.mark.usefixtures("tensorflow")
class TestWithTensorFlow:
    """Formats that TensorFlow decodes."""

    @staticmethod
    def draw(folder: Path, size: int = 4) -> None:
        """Two pictures of "no" and one of "yes"; the pixels are the picture's number."""
        import tensorflow as tf

        for number, (label, kind) in enumerate([("no", "png"), ("no", "jpg"), ("yes", "PNG")]):
            (folder / label).mkdir(parents=True, exist_ok=True)
            pixels = np.full((size, size, 3), number * 100, "uint8")
            encode = tf.io.encode_jpeg if kind == "jpg" else tf.io.encode_png
            (folder / label / f"{number}.{kind}").write_bytes(encode(pixels).numpy())
        (folder / "no" / "notes.txt").write_text("not a picture")
        (folder / ".thumbnails").mkdir()

    def test_images_have_the_label_of_their_folder(self, tmp_path: Path) -> None:
        """In the channels of the model, divided as site.toml says; a grey input may have no axis for its channel."""
        self.draw(tmp_path / "i")
        text = 'format = "images"\npath = "i"\ndivide_by = 100'
        for shape in ((4, 4, 3), (4, 4, 1), (4, 4)):
            data = read(tmp_path, text, pictures(*shape))
            assert data.x["x"].shape == (3, *shape)
            assert np.allclose(data.x["x"].reshape(3, -1)[:, 0], [0, 1, 2], atol=0.02)
            assert data.y["y"].tolist() == [0, 0, 1]

    def test_images_of_another_size_need_a_word(self, tmp_path: Path) -> None:
        """They are refused, or scaled where site.toml says so; damaged ones are never named."""
        self.draw(tmp_path / "i")
        text = 'format = "images"\npath = "i"'
        with pytest.raises(DataMismatch, match="pictures of 8x8x3, or resize"):
            read(tmp_path, text, pictures(8, 8, 3))
        assert read(tmp_path, text + "\nresize = true", pictures(8, 8, 3)).x["x"].shape == (3, 8, 8, 3)
        (tmp_path / "i" / "yes" / f"{AURELIA}.png").write_text(AURELIA)
        with pytest.raises(DataMismatch, match="data-unreadable") as caught:
            read(tmp_path, text, pictures(4, 4, 3))
        assert AURELIA not in str(caught.value)

    @staticmethod
    def record(path: Path, rows: int = 3, **changes: Any) -> None:
        """Examples of four pixels, three numbers and a label."""
        import tensorflow as tf

        def feature(value: Any) -> Any:
            if isinstance(value, bytes):
                return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            if isinstance(value, list):
                return tf.train.Feature(float_list=tf.train.FloatList(value=value))
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            for row in range(rows):
                fields = {
                    "pixels": bytes([row % 256] * 4),
                    "numbers": [float(row)] * 3,
                    "label": row % 2,
                    "name": b"yes",
                }
                fields = {key: feature(value) for key, value in (fields | changes).items() if value is not None}
                writer.write(tf.train.Example(features=tf.train.Features(feature=fields)).SerializeToString())

    TEXT = """format = "tfrecord"
path = "*.tfrecord"
compression = "GZIP"
input = "INPUT"
label = "LABEL"
[data.features]
pixels = { dtype = "bytes", shape = [2, 2, 1] }
numbers = { dtype = "float32", shape = [3] }
label = { dtype = "int64" }
name = { dtype = "bytes" }
"""

    def test_tfrecords_are_read_by_their_feature_spec(self, tmp_path: Path) -> None:
        """Numbers, raw bytes, labels as positions and as texts, from several files."""
        self.record(tmp_path / "a.tfrecord")
        self.record(tmp_path / "b.tfrecord", rows=1500)
        text = self.TEXT.replace("INPUT", "numbers").replace("LABEL", "label")
        data = read(tmp_path, text.replace("[data.f", 'timestamp = "label"\n[data.f'))
        assert data.x["x"].shape == (1503, 3)
        assert data.time is not None
        assert data.time.tolist() == data.y["y"].tolist()
        assert data.y["y"][:4].tolist() == [0, 1, 0, 0]
        (tmp_path / "b.tfrecord").unlink()
        data = read(tmp_path, self.TEXT.replace("INPUT", "pixels").replace("LABEL", "name"), pictures(2, 2, 1))
        assert data.x["x"].ravel().tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert data.y["y"].tolist() == [1, 1, 1]

    @pytest.mark.parametrize(
        ("changes", "code", "where"),
        [
            ({"numbers": None}, "data-missing", "numbers"),
            ({"numbers": 3}, "data-dtype", "numbers"),
            ({"numbers": [1.0]}, "data-shape", "numbers"),
            ({"label": 7}, "label-unknown", "y"),
            ({"numbers": [float("nan")] * 3}, "data-not-finite", "age"),
            ({"pixels": b"123"}, "", ""),
        ],
    )
    def test_tfrecords_that_do_not_fit_are_named_by_feature(
        self, tmp_path: Path, changes: dict[str, Any], code: str, where: str
    ) -> None:
        """A feature that nobody asks for may be anything."""
        self.record(tmp_path / "a.tfrecord", **changes)
        text = self.TEXT.replace("INPUT", "numbers").replace("LABEL", "label")
        if not code:
            read(tmp_path, text)
            return
        with pytest.raises(DataMismatch) as caught:
            read(tmp_path, text)
        assert caught.value.code == code
        assert where in caught.value.where

    def test_damaged_tfrecords_are_unreadable(self, tmp_path: Path) -> None:
        """Also where the compression is another one than site.toml says."""
        text = self.TEXT.replace("INPUT", "numbers").replace("LABEL", "label")
        (tmp_path / "a.tfrecord").write_text(AURELIA)
        with pytest.raises(DataMismatch, match="data-unreadable") as caught:
            read(tmp_path, text)
        assert AURELIA not in str(caught.value)
