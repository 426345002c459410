"""What a site answers in the course of a run, and to requests that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client.flowerside import to_bytes
from client.store import SiteStore
from client.trainer import Trainer
from fedretrain.codecs import make_codec
from fedretrain.contract import InputSpec, OutputSpec, keys
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, ReplaySection
from fedretrain.messages import BASE, PREPARE, TRAIN, pack
from server.admission import Expected, Update, admit_base, admit_prepare, admit_train, wire_bytes

from .parts import Case, body, case, raw, site_at

pytestmark = pytest.mark.usefixtures("tensorflow")


def test_a_run_goes_from_prepare_over_the_base_model_to_an_update(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """Every answer passes the server's admission; the base model is asked for once."""
    north = site_at(of, tmp_path, trainer)
    prepared = admit_prepare(north.handle(PREPARE, pack(of.request)), "run-1", of.contract.digest)
    assert (prepared.train_examples, prepared.validation_examples, prepared.needs_base) == (54, 6, True)  # type: ignore[union-attr]
    assert admit_base(north.handle(BASE, of.base_message()), "run-1", "north", of.contract.base).kind == "base"
    assert body(north.handle(PREPARE, pack(of.request)))["needs_base"] is False
    variables = dict(zip(keys(of.contract.changing), of.contract.changing_specs, strict=True))
    expected = Expected("run-1", 3, of.contract.digest, weights_digest(of.received), variables)
    update = admit_train(north.handle(TRAIN, of.train_message(3)), "north", 54, expected)
    assert update.examples == 54  # type: ignore[union-attr]
    assert update.flags == ()  # type: ignore[union-attr]
    assert set(update.claims) == {"train-loss", "val-loss", "val-accuracy", "seconds"}  # type: ignore[union-attr]
    assert update.norm > 0  # type: ignore[union-attr]


def test_another_process_at_the_site_can_take_over(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """What was prepared is in the store: a second site object with that store trains at once, with the same bits."""
    first = site_at(of, tmp_path, trainer)
    first.handle(PREPARE, pack(of.request))
    first.handle(BASE, of.base_message())
    second = site_at(of, tmp_path, Trainer())
    digests = [body(s.handle(TRAIN, of.train_message()))["update_digest"] for s in (first, second)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("codec", [NamedConfig(name="int8", block=16), NamedConfig(name="topk", share=0.25)])
def test_an_update_travels_in_the_runs_codec(codec: NamedConfig, of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """Admission gets it back with fewer bytes; another process answers the same round, and the next, with the same."""
    coded = Case(of.request.model_copy(update={"codec": codec}), of.base)
    variables = dict(zip(keys(of.contract.changing), of.contract.changing_specs, strict=True))
    sites = [site_at(run, tmp_path, trainer) for run in (of, coded, coded)]
    sites[1]._store = sites[2]._store = SiteStore(tmp_path / "coded")
    replies = []
    for north, run in zip(sites, (of, coded, coded), strict=True):
        north.handle(PREPARE, pack(run.request))
        north.handle(BASE, run.base_message())
        replies.append(north.handle(TRAIN, run.train_message()))
    expected = Expected("run-1", 1, of.contract.digest, weights_digest(of.received), variables)
    whole = admit_train(replies[0], "north", 54, expected)
    found = admit_train(replies[1], "north", 54, replace(expected, codec=make_codec(codec)))
    assert isinstance(whole, Update)
    assert isinstance(found, Update)
    assert 0 < np.linalg.norm(found.arrays[0] - whole.arrays[0]) < np.linalg.norm(whole.arrays[0])
    assert wire_bytes(replies[1]) < wire_bytes(replies[0])
    assert body(replies[1]) == body(replies[2])
    assert len({body(sites[i].handle(TRAIN, coded.train_message(2)))["update_digest"] for i in (1, 2, 1)}) == 1


@pytest.mark.slow
def test_a_frozen_backbone_costs_no_bytes(tensorflow: None, tmp_path: Path, trainer: Trainer) -> None:
    """MobileNetV2 with a head of ten classes: a round takes at most 1.1 times the head's bytes, each way."""
    import keras

    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2((96, 96, 3), include_top=False, weights=None, pooling="avg")
    model = keras.Sequential(
        [keras.Input((96, 96, 3), name="x"), backbone, keras.layers.Dense(10, "softmax", name="head")]
    )
    of = case(model, freeze=("mobilenet*",), local_steps=1, batch_size=4, validation_fraction=0.0)
    head = sum(v.numpy().nbytes for v in model.layers[-1].trainable_variables)
    assert head == 4 * (1280 * 10 + 10)
    north = site_at(of, tmp_path, trainer, raw(of, 8))
    assert body(north.handle(PREPARE, pack(of.request)))["kind"] == "prepare"
    assert body(north.handle(BASE, of.base_message()))["kind"] == "base"
    down = of.train_message()
    up = north.handle(TRAIN, down)
    assert body(up)["kind"] == "train"
    for message in (down, up):
        assert wire_bytes(message) <= 1.1 * head
        assert len(to_bytes(message)) <= 1.1 * head  # with all that is not arrays
    assert of.contract.nbytes > 170 * head


def test_data_are_read_again_when_a_run_is_prepared(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """A site whose data changed prepares again; in between, the rounds of a run see the same examples."""
    north = site_at(of, tmp_path, trainer)
    assert body(north.handle(PREPARE, pack(of.request)))["train_examples"] == 54
    np.savez(tmp_path / "site.npz", **raw(of, 100))
    north.handle(BASE, of.base_message())
    assert dict(north.handle(TRAIN, of.train_message()).metric_records["metrics"])["num-examples"] == 54
    assert body(north.handle(PREPARE, pack(of.request)))["train_examples"] == 90


def selecting(of: Case, **train: Any) -> Case:
    """The run with examples of the second half of the year as the new ones."""
    since = {"since": datetime(2026, 7, 1, tzinfo=UTC), **train}
    return Case(of.request.model_copy(update={"train": of.request.train.model_copy(update=since)}), of.base)


def dated(of: Case) -> dict[str, Any]:
    """60 examples, of which the second half is new."""
    return {**raw(of), "timestamp": np.repeat(np.array(["2026-01-01", "2026-08-01"], "datetime64[s]"), 30)}


def test_a_mode_trains_on_what_is_new_and_validates_on_all(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """As many as it declared; replay also in another process, after it kept what it trained on, with the same bits."""
    found, answers = {}, {}
    for mode in ("continue", "incremental", "replay"):
        way = selecting(of, mode=mode, replay=ReplaySection(share=0.25) if mode == "replay" else None)
        way = Case(way.request.model_copy(update={"run": mode}), way.base)
        north = site_at(way, tmp_path, trainer, dated(way))
        prepared = body(north.handle(PREPARE, pack(way.request)))
        north.handle(BASE, way.base_message())
        answers[mode] = [north.handle(TRAIN, way.train_message(2)) for _ in range(2)]
        numbers = dict(answers[mode][0].metric_records["metrics"])
        assert numbers["num-examples"] == prepared["train_examples"]
        found[mode] = prepared["train_examples"], prepared["validation_examples"], numbers["val-loss"]
    assert [some[0] for some in found.values()] == [54, 27, 36]
    assert len({some[1:] for some in found.values()}) == 1
    answers["replay"].append(site_at(way, tmp_path, Trainer(), dated(way)).handle(TRAIN, way.train_message(2)))
    digests = {mode: {body(answer)["update_digest"] for answer in some} for mode, some in answers.items()}
    assert len(set.union(*digests.values())) == len(digests)


def test_a_site_with_nothing_new_says_so(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """When it is prepared, so that the server knows before the first round."""
    late = selecting(of, mode="incremental", since=datetime(2027, 1, 1, tzinfo=UTC))
    answer = body(site_at(late, tmp_path, trainer, dated(late)).handle(PREPARE, pack(late.request)))
    assert (answer["kind"], answer["code"], answer["where"]) == ("declined", "no-new-data", "train.since")
    timeless = body(site_at(late, tmp_path, trainer).handle(PREPARE, pack(late.request)))
    assert (timeless["code"], timeless["where"]) == ("data-missing", "timestamp")


def without_body(text: str = "{}", version: str = "fedretrain.message/1") -> RecordDict:
    return RecordDict({"body": ConfigRecord({"json": text, "format": version})})


def changed(of: Case, **changes: Any) -> RecordDict:
    return pack(of.request.model_copy(update=changes))


def shifted(of: Case) -> Case:
    return Case(of.request, [a + 1 for a in of.base])


REFUSED: dict[str, tuple[Callable[[Case], tuple[str, RecordDict]], str, str]] = {
    "message type": (lambda of: ("query.rows", pack(of.request)), "request-invalid", "message type"),
    "nothing in it": (lambda _: (TRAIN, RecordDict()), "request-invalid", "body"),
    "another version": (lambda _: (TRAIN, without_body(version="fedretrain.message/9")), "request-invalid", "body"),
    "no JSON": (lambda _: (PREPARE, without_body("{")), "request-invalid", "body"),
    "another body": (lambda of: (PREPARE, of.train_message()), "request-invalid", "body"),
    "unknown run": (lambda of: (TRAIN, of.train_message(run="other")), "model-missing", "run"),
    "unknown run's base": (lambda of: (BASE, of.base_message(run="other")), "model-missing", "run"),
    "no base yet": (lambda of: (TRAIN, of.train_message()), "model-missing", "base"),
    "contract": (lambda of: (TRAIN, of.train_message(contract="0" * 64)), "request-invalid", "contract"),
    "globals": (lambda of: (TRAIN, of.train_message(globals_digest="0" * 64)), "request-invalid", "arrays"),
    "base of another": (lambda of: (BASE, of.base_message(base="0" * 64)), "model-mismatch", "base"),
    "base too short": (lambda of: (BASE, Case(of.request, of.base[:3]).base_message()), "request-invalid", "arrays"),
    "base changed": (lambda of: (BASE, shifted(of).base_message()), "request-invalid", "base"),
    "architecture": (lambda of: (PREPARE, changed(of, architecture="{}")), "model-mismatch", "architecture"),
    "codec": (lambda of: (PREPARE, changed(of, codec=NamedConfig(name="zip"))), "request-invalid", "codec"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_does_not_fit_is_declined(what: str, of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """By a code that says what the server sent; nothing is stored of it."""
    make, code, where = REFUSED[what]
    north = site_at(of, tmp_path, trainer)
    north.handle(PREPARE, pack(of.request))
    warm_elsewhere = Trainer() if what == "no base yet" else trainer
    north._trainer = warm_elsewhere
    found = body(north.handle(*make(of)))
    assert (found["kind"], found["code"], found["where"]) == ("declined", code, where)
    assert found["code"] in DeclinedRequest.CODES
    assert not (tmp_path / "store" / "base").exists()


def test_a_base_model_of_other_shapes_is_not_kept(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """The arrays are compared with the contract before they are decoded, whatever their digest."""
    north = site_at(of, tmp_path, trainer)
    north.handle(PREPARE, pack(of.request))
    wide = [np.zeros((4, 9), "float32"), *of.base[1:]]
    assert body(north.handle(BASE, Case(of.request, wide).base_message()))["where"] == "arrays.00000"


def test_the_contract_may_not_ask_for_what_the_site_has_not(of: Case, tmp_path: Path, trainer: Trainer) -> None:
    """Inputs and outputs of other names are missing arrays, not errors."""
    two = (InputSpec(name="a", shape=(4,), dtype="float32"), InputSpec(name="b", shape=(4,), dtype="float32"))
    outputs = (OutputSpec(name="y", shape=(3,), kind="multiclass", loss="l", labels=("0", "1", "2")),)
    contract = of.contract.model_copy(update={"inputs": two, "outputs": outputs})
    reply = site_at(of, tmp_path, trainer).handle(PREPARE, changed(of, contract=contract))
    assert (body(reply)["code"], body(reply)["where"]) == ("data-missing", "x.a")
