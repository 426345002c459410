"""Nothing of a site's data is in what it answers or logs: no row, value, file name or text of an exception."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto

from client.site import Site
from client.store import SiteStore
from client.trainer import Trainer
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset, load_npz
from fedretrain.messages import BASE, PREPARE, TRAIN, Declined, pack

from .parts import Arrays, Case, body, raw, site_at

pytestmark = pytest.mark.usefixtures("tensorflow")

Seen = Callable[[], str]

SECRET, NUMBER = "Aurelia Winterbottom", 12345678
"""What stands in bad files below, and must be nowhere else."""


def with_x(of: Case, change: Callable[[Any], Any]) -> Arrays:
    arrays = raw(of)
    x = arrays["x"].astype("float64")
    x[:, 1] = NUMBER
    return {**arrays, "x": change(x)}


def poked(x: Any, value: float) -> Any:
    x[2, 2] = value
    return x


def labels(of: Case, values: Any) -> Arrays:
    arrays = raw(of)
    y = np.array([values] * len(arrays["y"]))
    return {**arrays, "y": y}


BAD: dict[str, tuple[Callable[[Case], Arrays], str, str]] = {
    "NaN beside a secret": (lambda of: with_x(of, lambda x: poked(x, np.nan)), "data-not-finite", "weight"),
    "infinity beside one": (lambda of: with_x(of, lambda x: poked(x, np.inf)), "data-not-finite", "weight"),
    "out of range": (lambda of: with_x(of, lambda x: x), "data-range", "height"),
    "column missing": (lambda of: with_x(of, lambda x: x[:, :3]), "data-shape", "pulse"),
    "column too many": (lambda of: with_x(of, lambda x: np.hstack([x, x])), "data-shape", "x"),
    "flat": (lambda of: with_x(of, lambda x: x[:, 1]), "data-shape", "x"),
    "one number": (lambda of: with_x(of, lambda x: x[0, 1]), "data-shape", "x"),
    "more rows than labels": (lambda of: with_x(of, lambda x: np.vstack([x, x]) * 0), "label-shape", "y"),
    "texts": (lambda of: with_x(of, lambda x: np.full(x.shape, SECRET)), "data-dtype", "x"),
    "bytes": (lambda of: with_x(of, lambda x: np.full(x.shape, SECRET.encode())), "data-dtype", "x"),
    "complex": (lambda of: with_x(of, lambda x: x * 1j), "data-dtype", "x"),
    "dates": (lambda of: with_x(of, lambda x: x.astype("datetime64[s]")), "data-dtype", "x"),
    "named fields": (lambda of: with_x(of, lambda x: x.astype([(SECRET, "f8")])), "data-dtype", "x"),
    "objects": (lambda of: with_x(of, lambda x: np.full(x.shape, SECRET, object)), "data-unreadable", "data file"),
    "unknown label": (lambda of: labels(of, NUMBER), "label-unknown", "y"),
    "negative label": (lambda of: labels(of, -NUMBER), "label-unknown", "y"),
    "half a label": (lambda of: labels(of, NUMBER + 0.5), "label-unknown", "y"),
    "NaN label": (lambda of: labels(of, np.nan), "data-not-finite", "y"),
    "text label": (lambda of: labels(of, SECRET), "data-dtype", "y"),
    "object label": (lambda of: {**raw(of), "y": np.full(60, SECRET, object)}, "data-unreadable", "data file"),
    "label shape": (lambda of: labels(of, [NUMBER, 1]), "label-shape", "y"),
    "empty": (lambda of: {k: v[:0] for k, v in with_x(of, lambda x: x).items()}, "data-empty", "x"),
    "other names": (lambda of: {SECRET: raw(of)["x"], "y": raw(of)["y"]}, "data-missing", "x"),
    "negative weight": (lambda of: raw(of) | {"sample_weight": np.full(60, -NUMBER)}, "data-range", "sample_weight"),
    "text weight": (lambda of: raw(of) | {"sample_weight": np.full(60, SECRET)}, "data-dtype", "sample_weight"),
    "weights missing": (lambda of: raw(of) | {"sample_weight": np.full(6, NUMBER)}, "data-shape", "sample_weight"),
    "slices": (lambda of: raw(of) | {"slice": np.full(6, SECRET)}, "data-shape", "slice"),
}  # fmt: skip


def leaks(reply: RecordDict, log: str) -> list[str]:
    """Forms of the secrets in an answer or in the log."""
    seen = recorddict_to_proto(reply).SerializeToString() + log.encode()
    forms = [SECRET, *SECRET.split(), str(NUMBER), "12,345,678", f"{NUMBER:e}"[:7], "1.23e"]
    return [form for form in forms if form.encode() in seen or form.encode("utf-32-le") in seen]


def test_the_search_finds_what_is_there() -> None:
    """In a reply's text, as a label's number, and in an array of texts."""
    declined = Declined(run="r", site="s", code="site-failure", where=f"label {NUMBER}")
    assert leaks(pack(declined), "") == [str(NUMBER)]
    assert leaks(pack(declined.model_copy(update={"where": ""}), {"0": np.array([SECRET])}), "") != []
    assert leaks(RecordDict(), f"cannot read {SECRET}.npz") != []


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The log one level more talkative than an operator has it, and all output, that of native code included."""
    caplog.set_level(logging.INFO)
    capfd.readouterr()
    return lambda: caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("what", BAD)
def test_bad_data_are_declined_by_name_and_without_a_value(
    what: str, of: Case, tmp_path: Path, trainer: Trainer, seen: Seen
) -> None:
    """The code and the column, input or output; the file's name is a secret as well. Output of native code counts."""
    make, code, where = BAD[what]
    folder = tmp_path / SECRET
    folder.mkdir()
    file = folder / f"{SECRET}.npz"
    np.savez(file, **make(of))
    north = Site("north", lambda contract: load_npz(file, contract), SiteStore(tmp_path / "store"), trainer)
    reply = north.handle(PREPARE, pack(of.request))
    found = body(reply)
    assert (found["kind"], found["code"]) == ("declined", code)
    assert where in found["where"]
    assert found["expected"]
    assert leaks(reply, seen()) == []


UNREADABLE: dict[str, Callable[[Path, Case], object]] = {
    "no such file": lambda _file, _of: None,
    "a text": lambda file, _of: file.write_text(f"{SECRET},{NUMBER}\n" * 50),
    "a zip of texts": lambda file, _of: np.savez(file, x=np.array(SECRET), y=np.array(SECRET)),
    "one array": lambda file, _of: np.save(file.open("wb"), np.full(9, NUMBER)),
    "cut short": lambda file, of: (np.savez(file, **labels(of, NUMBER)), file.write_bytes(file.read_bytes()[:-100])),
    "a folder": lambda file, _of: file.mkdir(),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_files_that_are_no_data_are_declined_without_their_name(
    what: str, of: Case, tmp_path: Path, trainer: Trainer, seen: Seen
) -> None:
    """Neither the name nor the content of the file is in the answer or the log."""
    file = tmp_path / f"{SECRET}.npz"
    UNREADABLE[what](file, of)
    north = Site("north", lambda contract: load_npz(file, contract), SiteStore(tmp_path / "store"), trainer)
    reply = north.handle(PREPARE, pack(of.request))
    assert body(reply)["kind"] == "declined"
    assert body(reply)["code"].startswith("data-")
    assert leaks(reply, seen()) == []


def test_another_preprocessing_is_declined_without_its_name(
    of: Case, tmp_path: Path, trainer: Trainer, seen: Seen
) -> None:
    """What the contract asks for is said, what the site has is not."""
    contract = of.contract.model_copy(update={"preprocessing": "pixels/16"})
    north = site_at(of, tmp_path, trainer, raw(of) | {"preprocessing": np.array(SECRET)})
    reply = north.handle(PREPARE, pack(of.request.model_copy(update={"contract": contract})))
    assert body(reply)["code"] == "data-preprocessing"
    assert "pixels/16" in body(reply)["expected"]
    assert leaks(reply, seen()) == []


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError, AssertionError, ExceptionGroup])
def test_whatever_fails_becomes_a_code_and_its_text_stays_here(
    error: type[Exception], of: Case, tmp_path: Path, trainer: Trainer, seen: Seen
) -> None:
    """The site's own loader may raise what it likes; the log has class and place."""

    def load(contract: Contract) -> Dataset:
        text = f"could not convert string to float: '{SECRET}' {NUMBER}"
        raise error(text, [ValueError(text)]) if error is ExceptionGroup else error(text)

    north = Site("north", load, SiteStore(tmp_path / "store"), trainer)
    reply = north.handle(PREPARE, pack(of.request))
    assert (body(reply)["code"], body(reply)["run"]) == ("site-failure", "run-1")
    log = seen()
    assert error.__name__ in log
    assert "in load" in log
    assert leaks(reply, log) == []


def test_level_debug_has_the_texts(
    of: Case, tmp_path: Path, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who debugs a site's own loader asks for them."""

    def load(contract: Contract) -> Dataset:
        raise ValueError(SECRET)

    caplog.set_level(logging.DEBUG)
    reply = Site("north", load, SiteStore(tmp_path / "store"), trainer).handle(PREPARE, pack(of.request))
    assert SECRET in caplog.text
    assert leaks(reply, "") == []


def test_a_failure_of_tensorflow_stays_here(
    of: Case, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label past the checks makes TensorFlow quote all labels of the batch; none of that is passed on."""
    monkeypatch.setattr("client.checking.quality.check_dataset", lambda _data, _contract: None)
    north = site_at(of, tmp_path, Trainer(), labels(of, NUMBER))
    north.handle(PREPARE, pack(of.request))
    north.handle(BASE, of.base_message())
    reply = north.handle(TRAIN, of.train_message())
    assert body(reply)["code"] in {"site-failure", "training-diverged"}
    assert leaks(reply, seen()) == []


def test_an_update_carries_no_values_of_the_data(of: Case, tmp_path: Path, trainer: Trainer, seen: Seen) -> None:
    """Slices and file names of a site that trains are in no answer; its log is silent."""
    north = site_at(of, tmp_path, trainer, raw(of) | {"slice": np.full(60, SECRET), "note": np.array(SECRET)})
    for kind, message in ((PREPARE, pack(of.request)), (BASE, of.base_message()), (TRAIN, of.train_message())):
        reply = north.handle(kind, message)
        assert body(reply)["kind"] != "declined"
        assert leaks(reply, seen()) == []
