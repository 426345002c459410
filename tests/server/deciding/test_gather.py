"""From a history of checks to evidence."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fedretrain.job import Job
from server.checking.document import Check
from server.deciding.evidence import Estimate, Evidence, Signal
from server.deciding.gather import Runs, evidence_of
from server.drift.findings import Finding, Findings
from server.history import History

from .kept import NOW, check, finding, findings, job, site


@pytest.fixture
def watched(tmp_path: Path) -> Job:
    return job(tmp_path / "m.keras", watch={"labels": ["8", "9"]})


def gathered(watched: Job, *kept: tuple[Check, Findings], runs: Runs | None = None) -> Any:
    """The evidence from a history of these checks."""
    with TemporaryDirectory() as folder, History.open(Path(folder) / "history.db") as history:
        for one, found in kept:
            history.add_check(one, found)
        return evidence_of(history, watched, runs or Runs(), NOW)


def test_without_a_check_there_is_no_evidence(watched: Job) -> None:
    """Nor is there where the last one looked at another release than the one in use."""
    drifted = (check(0, site("a"), release="old"), findings(0, finding("concept", "drift")))

    for kept in ((), (drifted,)):
        found = gathered(watched, *kept, runs=Runs(release="new", sites=frozenset({"a"})))
        assert (found.too_little, found.signals, found.new_examples, found.sites) == (True, (), None, 0)


def test_a_check_before_the_first_release_is_of_the_model_that_came_first(watched: Job) -> None:
    """It was watched as the job's, and became the first release when a run was rejected."""
    found = gathered(watched, (check(0, site("a")), findings(0)), runs=Runs(release="first", sites=None))

    assert found.sites == 1


def test_drift_is_told_by_kind_with_its_greatest_effect_and_where(watched: Job) -> None:
    """At two of three sites, 0.7 at most; a kind without drift is no signal, nor are events."""
    kept = findings(
        0,
        finding("covariate", "drift", 0.2),
        finding("covariate", "drift", 0.7, "b", "age"),
        finding("covariate", "drift", 0.3, "a"),
        finding("covariate", "no drift", 0.9, "c"),
        finding("label", "no drift"),
        finding("stream", "drift"),
    )

    found = gathered(watched, (check(0, site("a"), site("b"), site("c")), kept))

    assert found.signals == (Signal("covariate", 0.7, 2, 3, 1, "age"),)


def test_checks_in_a_row_are_counted_back_from_the_latest(watched: Job) -> None:
    """One with too little data says neither; one without drift ends the row, and so does another release."""
    verdicts = ["drift", "no drift", "drift", "too little data", "drift"]
    kept = [(check(i, site("a"), release="r"), findings(i, finding("label", v))) for i, v in enumerate(verdicts)]
    other = (check(9, site("a"), release="q"), findings(9, finding("label", "drift")))

    runs = Runs(release="r", sites=frozenset({"a"}))

    assert gathered(watched, *kept, runs=runs).signals[0].checks == 2
    assert gathered(watched, other, *kept[2:], runs=runs).signals[0].checks == 2


def test_performance_is_that_of_all_sites_together(watched: Job) -> None:
    """0.8 on recent examples, 0.9 on older ones, 0.85 by its own confidence."""
    found = gathered(watched, (check(0, site("a")), findings(0)))

    assert found.metric == Estimate(0.8, 0.75, 0.8 + 0.05, 100)
    assert (found.reference.value, found.expected_accuracy) == (0.9, 0.85)


def test_examples_without_labels_cannot_be_trained_on(watched: Job) -> None:
    """Of 40 recent ones each, those of a site without labels do not count; a section that policy withholds does."""
    sites = (site("a"), site("b", withheld={"labels": "no labels"}), site("c", withheld={"labels": "policy"}))

    found = gathered(watched, (check(0, *sites), findings(0)))

    assert (found.new_examples, found.old_examples) == (80, 200)
    assert found.withheld == ("b: labels (no labels)", "c: labels (policy)")


def test_new_labels_are_those_looked_for_that_the_model_does_not_know(watched: Job) -> None:
    """7 and 5 of "8", and what a site withheld counts as nothing; 3 of a name that nobody asked for."""
    sites = (site("a", labels=(20, 10, 7, 3)), site("b", labels=(20, 10, 5, None)), site("c", labels=(40, 0, None, 0)))

    found = gathered(watched, (check(0, *sites), findings(0)))

    assert (found.new_labels, found.unknown_labels) == ((("8", 12),), 3)


def test_a_label_that_the_model_learned_is_not_new(tmp_path: Path) -> None:
    """It may still be looked for."""
    found = gathered(job(tmp_path / "m.keras", watch={"labels": ["1"]}), (check(0, site("a")), findings(0)))

    assert found.new_labels == ()


def test_a_site_is_new_where_the_release_was_not_trained_and_it_could_not_be(watched: Job) -> None:
    """ "a" was trained at, "b" was there before the release and did not take part, "c" came after it."""
    kept = [
        (check(0, site("b"), release="old"), findings(0)),
        (check(1, site("a"), site("b"), site("c"), release="r"), findings(1)),
    ]

    found = gathered(watched, *kept, runs=Runs(release="r", sites=frozenset({"a"})))

    assert found.new_sites == ("c",)


def test_of_a_model_that_was_brought_in_the_first_check_says_who_was_there(watched: Job) -> None:
    """So not all sites are new at once; it stays new in later checks."""
    kept = [(check(0, site("a")), findings(0))]
    kept += [(check(i, site("a"), site("b")), findings(i)) for i in (1, 2)]

    assert gathered(watched, *kept[:1]).new_sites == ()
    assert gathered(watched, *kept).new_sites == ("b",)


def test_the_best_is_that_of_the_model_in_use_in_any_check(watched: Job) -> None:
    """0.92 in its second check; what the release before did does not count."""
    kept = [(check(0, site("a"), release="old"), findings(0, recent=0.99))]
    kept += [(check(i, site("a"), release="r"), findings(i, recent=r)) for i, r in ((1, 0.7), (2, 0.92), (3, 0.8))]

    found = gathered(watched, *kept, runs=Runs(release="r", sites=frozenset({"a"})))

    assert (found.best.value, found.metric.value) == (0.92, 0.8)


def test_the_release_before_is_known_by_its_last_check(watched: Job) -> None:
    """0.6 when it was replaced, whatever it was before."""
    kept = [(check(i, site("a"), release="old"), findings(i, recent=r)) for i, r in enumerate((0.9, 0.6))]
    kept.append((check(2, site("a"), release="r"), findings(2)))

    found = gathered(watched, *kept, runs=Runs(release="r", sites=frozenset({"a"}), previous_release="old"))

    assert (found.previous_release, found.previous_metric.value) == ("old", 0.6)


def test_hours_that_sites_decline_for_are_told(watched: Job) -> None:
    """As the site words them; another refusal has no hours."""
    declined = {"b": "policy at hours: expected 22:00-06:00, the site's time", "c": "data-missing at x"}

    found = gathered(watched, (check(0, site("a"), declined=declined), findings(0)))

    assert found.site_hours == (("b", ("22:00-06:00",)),)


def test_ways_that_sites_do_not_allow_are_told_by_what_the_run_would_be(watched: Job) -> None:
    """ "full" goes on from the model in use, and so does "transfer" where the job has no head of its own."""
    sites = (site("a"), replace(site("b"), declines=("continue",)), replace(site("c"), declines=("replay", "transfer")))

    found = gathered(watched, (check(0, *sites), findings(0)))

    assert found.declined == (("replay", ("c",)), ("transfer", ("b",)), ("full", ("b",)))
    assert found.needed == watched.participation.min_sites
    assert Evidence.from_json(found.to_json()) == found
    assert not {"declined", "needed"} & set(gathered(watched, (check(0, site("a")), findings(0))).to_json())


def test_findings_that_mostly_lack_data_say_nothing(watched: Job) -> None:
    """An answer to every second question about drift is enough, and so is drift in one; quality is none of them."""
    little, enough = finding("covariate", "too little data"), finding("label", "no drift")
    drift, fine = finding("concept", "drift"), finding("quality", "no drift")

    def says_nothing(*found: Finding) -> bool:
        return bool(gathered(watched, (check(0, site("a")), findings(0, *found))).too_little)

    assert says_nothing(little, little)
    assert says_nothing(little, little, enough)
    assert says_nothing(little, fine, fine)
    assert not says_nothing(little, enough)
    assert not says_nothing(little, little, drift)
