"""What a check counts: its layout on both sides, and what a job may ask."""

from pathlib import Path

import numpy as np
import pytest

from fedretrain.checks import (
    FAILED,
    NOT_ASKED,
    SECTIONS,
    WINDOWS,
    Answer,
    CheckSettings,
    decisions,
    directions,
    label_names,
    layout,
    subjects,
)
from fedretrain.contract import Contract, Feature, InputSpec, OutputSpec, VariableSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig, parse_job
from fedretrain.messages import PrepareRequest
from fedretrain.sums import settings_of, sum_specs

CONTRACT = Contract(
    inputs=(
        InputSpec(name="x", shape=(2,), dtype="float32", columns=("age", "weight")),
        InputSpec(name="image", shape=(4, 4, 1), dtype="float32"),
    ),
    outputs=(
        OutputSpec(name="kind", shape=(3,), kind="multiclass", loss="l", labels=("a", "b", "c")),
        OutputSpec(name="tags", shape=(2,), kind="multilabel", loss="l", labels=("p", "q")),
        OutputSpec(name="dose", shape=(1,), kind="regression", loss="l"),
    ),
    preprocessing=None,
    architecture="ab" * 32,
    base="0" * 64,
    variables=(VariableSpec(shape=(2,), dtype="float32", rule="train"),),
)
WATCHED = CONTRACT.model_copy(
    update={
        "features": (
            Feature(name="age", kind="column", input="x", edges=(18.0, 65.0)),
            Feature(name="projection 0", kind="projection", input="", edges=(0.5,)),
        )
    }
)
SETTINGS = CheckSettings(labels=("d", "a"), metrics=("revenue",), statistics=("histogram", "labels", "business"))


def test_a_contract_that_watches_nothing_is_the_one_it_was() -> None:
    """Its JSON, and so every digest in messages and releases, does not know of features; likewise a request's."""
    assert "features" not in CONTRACT.model_dump(mode="json")
    assert CONTRACT.digest == "5fa977ebf318d3020fe81f9b21eb4d1b01b726555a39f568f4f7c653c1c9c360"
    assert WATCHED.digest != CONTRACT.digest
    assert Contract.model_validate_json(WATCHED.model_dump_json()) == WATCHED
    body = {"run": "r", "contract": CONTRACT, "architecture": "{}", "train": {}, "strategy": {"name": "fedavg"}}
    assert "check" not in PrepareRequest.model_validate(body).model_dump()
    assert PrepareRequest.model_validate({**body, "check": True}).model_dump()["check"] is True


def test_edges_have_to_ascend_and_features_to_differ() -> None:
    """Cells would overlap, and a name would be two histograms."""
    with pytest.raises(ValueError, match="strictly ascending"):
        Feature(name="age", kind="column", input="x", edges=(2.0, 2.0))
    twice = {**CONTRACT.model_dump(), "features": [WATCHED.features[0].model_dump()] * 2}
    with pytest.raises(ValueError, match="different names"):
        Contract.model_validate(twice)


def test_the_layout_follows_from_contract_and_settings() -> None:
    """Both sides derive it: 7 arrays about the site, then 14 for each window; sizes by hand."""
    sizes = [spec.shape for spec in layout(WATCHED, SETTINGS).values()]
    assert sizes[:7] == [(2,), (10,), (2,), (1,), (1,), (1, 16), (32, 2)]
    histograms, missing, labels, predicted, confusion, bins = (3 + 2,), (2,), (5 + 5,), (3 + 2,), (9,), (20,)
    window = [histograms, missing, missing, (2,), (1,), (1,), labels, predicted, confusion, *[bins] * 4, (6,)]
    assert sizes[7:] == window * 2
    assert sum_specs(SETTINGS.config, WATCHED) == layout(WATCHED, SETTINGS)
    assert settings_of(SETTINGS.config) == SETTINGS


def test_names_of_what_is_counted() -> None:
    """Columns that are features by name, other inputs as a whole; labels that are known, looked for, and the rest."""
    assert subjects(WATCHED) == ("age", "image")
    assert subjects(CONTRACT) == ("x", "image")
    assert [decisions(spec) for spec in CONTRACT.outputs] == ["one", "several", "none"]
    assert label_names(CONTRACT.outputs[0], SETTINGS) == ("a", "b", "c", "d", "unknown")


def test_an_answer_comes_back_as_it_went() -> None:
    """Whatever is filled in, cell for cell; what is not given stays withheld."""
    sent = Answer.blank(WATCHED, SETTINGS, 5, 0.5)
    assert (sent.reasons["histogram"], sent.reasons["age"]) == (FAILED, NOT_ASKED)
    sent.reasons["histogram"] = 0
    sent.examples["recent"] = 70
    sent.windows["recent"]["histograms"]["age"][:] = 10, 20, 40
    sent.windows["recent"]["confusion"]["kind"][1, 2] = 7
    sent.windows["reference"]["duplicates"][""][...] = 9
    sent.business["revenue"] = 12.5, "€/day"
    long = Answer.blank(WATCHED, SETTINGS, 5, None)
    long.business["revenue"] = 1.0, "€€€€€€"  # three bytes each: the sixth would be cut in two
    assert Answer.from_arrays(long.to_arrays(SETTINGS), WATCHED, SETTINGS).business["revenue"][1] == "€€€€€"
    told = Answer(*(getattr(sent, f) for f in ("min_count", "epsilon", "reasons", "examples", "windows", "business")), (
        ("error", 86400),
        ("confidence", 172800),
    ))  # fmt: skip
    arrays = told.to_arrays(SETTINGS)
    assert [(a.shape, a.dtype.name) for a in arrays] == [(s.shape, s.dtype) for s in layout(WATCHED, SETTINGS).values()]
    back = Answer.from_arrays(arrays, WATCHED, SETTINGS)
    assert (back.min_count, back.epsilon, back.reasons, back.examples) == (5, 0.5, told.reasons, told.examples)
    assert (back.business, back.events) == (told.business, told.events)
    for window in WINDOWS:
        for field, cells in told.windows[window].items():
            for subject, counts in cells.items():
                np.testing.assert_array_equal(back.windows[window][field][subject], counts)


def test_directions_are_the_same_everywhere_and_whatever_is_asked_beside() -> None:
    """Unit vectors by the architecture alone: the first ones stay, another architecture has others."""
    eight = directions(CONTRACT, 5, 8)
    assert (eight.shape, eight.dtype.name) == ((5, 8), "float32")
    np.testing.assert_array_equal(directions(CONTRACT, 5, 3), eight[:, :3])
    np.testing.assert_allclose(np.linalg.norm(eight, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(eight[0, :2], (0.4070396, -0.2675818), rtol=1e-6)
    other = CONTRACT.model_copy(update={"architecture": "cd" * 32})
    assert not np.array_equal(directions(other, 5, 8), eight)


def refused(folder: Path, **watch: object) -> str:
    raw = {"model": {"path": "m"}, "holdout": [{"name": "h", "path": "p"}], "watch": watch}
    with pytest.raises(ConfigurationError) as caught:
        parse_job(raw, folder / "job.toml")
    return str(caught.value)


def test_what_cannot_be_watched_is_refused_in_a_line(tmp_path: Path) -> None:
    """The key, what was expected, and what was found."""
    assert "watch.bins: expected at least 4" in refused(tmp_path, bins=3)
    assert "watch.edges: age: expected at least one number, in strictly ascending order, got (40.0, 18.0)" in refused(
        tmp_path, edges={"age": [40, 18]}
    )
    assert f"watch.statistics: expected some of {', '.join(SECTIONS)}, got 'colour'" in refused(
        tmp_path, statistics=["colour"]
    )
    assert "watch.detector: there is no 'adwn'; did you mean 'adwin'?" in refused(tmp_path, detector={"name": "adwn"})
    assert "watch.detector: delta: expected less than 1 (rise of the mean that is let pass" in refused(
        tmp_path, detector={"name": "page-hinkley", "delta": 2}
    )
    assert "watch.detector: lamda: unknown setting of hddm-w; it has drift_confidence," in refused(
        tmp_path, detector={"name": "hddm-w", "lamda": 0.1}
    )
    assert "watch.labels: expected different names, none of them 'unknown'" in refused(tmp_path, labels=["unknown"])
    assert "did you mean 'projections'?" in refused(tmp_path, projection=3)


def test_a_job_keeps_its_identity_whatever_is_watched(tmp_path: Path) -> None:
    """No run looks at these tables; without them the job's JSON is what it was."""
    for name in ("m", "p"):
        (tmp_path / name).touch()
    raw = {"model": {"path": "m"}, "holdout": [{"name": "h", "path": "p"}]}
    plain = parse_job(raw, tmp_path / "job.toml")
    assert not {"watch", "plan"} & set(plain.model_dump())
    watched = parse_job(
        {**raw, "watch": {"bins": 5, "detector": {"name": "adwin", "delta": 0.1}}, "plan": {}}, tmp_path / "j"
    )
    assert watched.digest == plain.digest
    assert type(watched).model_validate_json(watched.model_dump_json()) == watched


def test_a_check_cannot_be_asked_with_other_settings() -> None:
    """A word that does not exist is refused before anything is computed."""
    with pytest.raises(ConfigurationError, match="sum check: statistics: expected some of"):
        sum_specs(NamedConfig.model_validate({"name": "check", "statistics": ["colour"]}), WATCHED)
    with pytest.raises(ConfigurationError, match="sum check: bins: Extra inputs"):
        sum_specs(NamedConfig.model_validate({"name": "check", "bins": 3}), WATCHED)
