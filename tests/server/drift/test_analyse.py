"""Whole checks, drawn as the benchmark draws them: what is called drift, what is not, and what is not answered."""

import json
from dataclasses import replace

import pytest

from fedretrain.checks import SECTIONS, WatchSection
from server.checking.document import Check, SiteCheck, Window
from server.drift.analyse import analyse
from server.drift.findings import Finding, Findings
from simulations.benchmarks.drift import GUARDINGS
from simulations.benchmarks.drift_worlds import NOTHING, Change, Guarding, check

SETTINGS = WatchSection()
PLAIN, GUARDED = GUARDINGS[:2]


def found_in(change: Change, n: int = 1000, sites: int = 3, guarding: Guarding = PLAIN, seed: int = 1) -> Findings:
    """Findings of one drawn check."""
    return analyse(check(seed, n, sites, guarding, change), (), SETTINGS)


def of(found: Findings, kind: str, subject: str, site: str | None = None) -> Finding:
    """The one finding about a subject."""
    (one,) = (f for f in found.findings if (f.kind, f.subject, f.site) == (kind, subject, site))
    return one


@pytest.mark.parametrize("guarding", GUARDINGS, ids=lambda g: g.name)
def test_nothing_is_found_where_nothing_changed(guarding: Guarding) -> None:
    """However counts are guarded; what cannot be said is "too little data"."""
    for seed in range(5):
        found = found_in(NOTHING, n=300, guarding=guarding, seed=seed)
        assert [f for f in found.findings if f.verdict == "drift"] == []


def test_kinds_are_told_apart() -> None:
    """Moved inputs, other frequencies and exchanged meanings are each called what they are, and meanings alone."""
    inputs = found_in(Change("", "covariate", inputs=0.6), n=3000)
    assert of(inputs, "covariate", "x0").verdict == "drift"
    assert of(inputs, "covariate", "x1").verdict == "no drift"
    assert not inputs.drifted("concept")
    labels = found_in(Change("", "label", labels=0.3), n=3000)
    assert of(labels, "label", "y").verdict == "drift"
    assert not labels.drifted("concept")
    meanings = found_in(Change("", "concept", swapped=1.0), n=3000)
    assert of(meanings, "concept", "y").verdict == "drift"
    assert not meanings.drifted("covariate")


def test_opposite_changes_are_found_at_the_sites() -> None:
    """One site's inputs move up, the other's down: together they move less than each."""
    found = found_in(Change("", "covariate", inputs=0.6, opposite=True), sites=2, n=3000)
    assert of(found, "covariate", "x0", "site-00").verdict == "drift"
    assert of(found, "covariate", "x0", "site-01").verdict == "drift"
    assert of(found, "covariate", "x0").effect < of(found, "covariate", "x0", "site-00").effect / 3


def test_few_examples_are_no_evidence_of_no_drift() -> None:
    """With 60 examples in each window chance makes changes that anybody would call large."""
    found = found_in(NOTHING, n=60, sites=1)
    assert of(found, "covariate", "x0", "site-00").verdict == "too little data"
    assert "too little data" in of(found, "covariate", "x0", "site-00").text


@pytest.mark.parametrize("section", SECTIONS)
def test_a_withheld_section_costs_no_other(section: str) -> None:
    """Everything else is still asked, and drift in it is found."""
    drawn = check(1, 3000, 2, PLAIN, Change("", "", inputs=0.6, labels=0.3))
    sites = {
        name: replace(site, withheld={section: "policy", "stream": "policy"}) for name, site in drawn.sites.items()
    }
    found = analyse(replace(drawn, sites=sites), (), SETTINGS)
    assert found.drifted("covariate") == (section != "histogram")
    assert found.drifted("label")
    assert any(f.kind == "concept" for f in found.findings)


def test_labels_are_estimated_where_the_recent_ones_have_none() -> None:
    """The reference is labelled and tells how to read the model's answers (BBSE)."""
    drawn = check(1, 3000, 2, PLAIN, Change("", "label", labels=0.3))
    sites = {name: _without_recent_labels(site) for name, site in drawn.sites.items()}
    found = analyse(replace(drawn, sites=sites), (), SETTINGS)
    one, labelled = of(found, "label", "y"), of(analyse(drawn, (), SETTINGS), "label", "y")
    assert one.verdict == "drift"
    assert one.effect == pytest.approx(labelled.effect, rel=0.3)
    assert of(found, "concept", "y").verdict == "too little data"


def _without_recent_labels(site: SiteCheck) -> SiteCheck:
    none = {"y": (0,) * 6}
    recent = replace(
        site.recent, labels=none, labelled={"y": (0,) * 10}, right={"y": (0,) * 10}, confusion={"y": ((0,) * 5,) * 5}
    )
    return replace(site, recent=recent)


def test_an_earlier_check_is_the_reference_where_a_site_has_none() -> None:
    """The earliest comparable one; one of another release is not."""
    first, since = check(1, 1000, 2, PLAIN, NOTHING), check(2, 1000, 2, PLAIN, Change("", "covariate", inputs=0.6))
    first = replace(first, at="2026-01-01T00:00:00Z")
    since = replace(since, at="2026-02-01T00:00:00Z", sites={n: _young(s) for n, s in since.sites.items()})
    assert not any(f.kind == "covariate" and f.verdict == "drift" for f in analyse(since, (), SETTINGS).findings)
    assert of(analyse(since, (first,), SETTINGS), "covariate", "x0").verdict == "drift"
    assert not analyse(since, (replace(first, release="r1"),), SETTINGS).drifted("covariate")


def test_few_examples_from_before_are_not_replaced_by_what_had_drifted_already() -> None:
    """A site with 80 old examples whose inputs moved before the first check is found at the second as at the first."""
    change = Change("", "covariate", inputs=2.0)
    few = check(3, 80, 1, PLAIN, NOTHING).sites["site-00"].reference
    first, second = (_with_reference(check(seed, 1000, 1, PLAIN, change), few) for seed in (1, 2))
    first, second = replace(first, at="2026-01-01T00:00:00Z"), replace(second, at="2026-02-01T00:00:00Z")
    assert of(analyse(first, (), SETTINGS), "covariate", "x0").verdict == "drift"
    assert of(analyse(second, (first,), SETTINGS), "covariate", "x0").verdict == "drift"


def _with_reference(one: Check, reference: Window) -> Check:
    return replace(one, sites={name: replace(site, reference=reference) for name, site in one.sites.items()})


def _young(site: SiteCheck) -> SiteCheck:
    return replace(site, reference=check(3, 0, 1, PLAIN, NOTHING).sites["site-00"].reference)


def test_a_release_is_not_judged_by_what_it_was_trained_on() -> None:
    """Its first check has no accuracy to compare with; the second compares with the first."""
    at = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    first = replace(check(1, 2000, 2, PLAIN, NOTHING), release="r1", at=at[0])
    second = replace(check(2, 2000, 2, PLAIN, Change("", "concept", swapped=1.0)), release="r1", at=at[1])
    alone = analyse(second, (), SETTINGS)
    assert of(alone, "concept", "y").verdict == "too little data"
    assert alone.performance[0].reference is None
    moved = check(3, 2000, 2, PLAIN, Change("", "covariate", inputs=2.0)).sites
    before = {n: replace(s, reference=moved[n].recent) for n, s in second.sites.items()}  # explains nothing since then
    later = analyse(replace(second, sites=before), (first,), SETTINGS)
    assert of(later, "covariate", "x0").verdict == "drift"
    assert of(later, "concept", "y").verdict == "drift"
    assert later.performance[0].reference is not None


def test_expected_accuracy_is_the_mean_confidence() -> None:
    """Without labels, confidence alone says how good the model thinks it is; at once with them, both stand there."""
    drawn = check(1, 3000, 2, PLAIN, NOTHING)
    whole = analyse(drawn, (), SETTINGS).performance[0]
    recent = [site.recent for site in drawn.sites.values()]
    assert whole.expected == pytest.approx(sum(c or 0 for w in recent for c in w.confidence_sum["y"]) / 6000)
    right = sum(c or 0 for w in recent for c in w.right["y"]) / 6000
    assert whole.recent is not None
    assert whole.recent.value == pytest.approx(right)
    assert whole.recent.low < right < whole.recent.high


def test_accuracy_is_an_interval_where_counts_are_suppressed() -> None:
    """It holds the accuracy that all counts have: bins with few examples have more errors, and are not left out."""
    for seed in range(10):
        plain, guarded = (analyse(check(seed, 100, 1, g, NOTHING), (), SETTINGS).performance[0] for g in GUARDINGS[:2])
        assert plain.recent is not None
        assert guarded.recent is not None
        assert guarded.recent.low <= plain.recent.low
        assert guarded.recent.high >= plain.recent.high


@pytest.mark.parametrize("n", [30, 100])
def test_no_more_examples_are_told_than_there_are(n: int) -> None:
    """Suppressed counts are filled in to compare windows, beyond what a site has; what is shown stays within it."""
    drawn = check(1, n, 1, GUARDED, NOTHING)
    found, site = analyse(drawn, (), SETTINGS), drawn.sites["site-00"]
    most = (site.reference.examples, site.recent.examples)
    assert found.findings
    for one in found.findings:
        assert (one.n_reference <= most[0], one.n_recent <= most[1]) == (True, True), one
    for told in found.performance:
        assert told.recent is not None
        assert told.reference is not None
        assert (told.reference.n <= most[0], told.recent.n <= most[1]) == (True, True), told


def test_worse_data_are_found() -> None:
    """Missing values that rise from 2 to 10 %, a constant that was none, data that came twice, and what fired."""
    drawn = check(1, 1000, 1, PLAIN, NOTHING)
    site = drawn.sites["site-00"]
    recent = replace(site.recent, missing={**site.recent.missing, "x1": 110}, constant=("x2",), duplicates=500)
    worse = replace(site, recent=recent, withheld={}, events=(("error", 86_400 * 20_000),))
    found = analyse(replace(drawn, sites={"site-00": worse}), (), SETTINGS)
    wrong = {(f.kind, f.subject) for f in found.findings if f.verdict == "drift" and f.site}
    expected = {"missing x1", "constant x2", "duplicates"}
    assert wrong == {*(("quality", subject) for subject in expected), ("stream", "stream")}


def test_a_device_that_fails_is_found() -> None:
    """All recent rows lack a value, so that none is complete and nothing else can be compared."""
    drawn = check(1, 1000, 1, PLAIN, NOTHING)
    site = drawn.sites["site-00"]
    nothing = {name: (None,) * len(cells) for name, cells in site.recent.histograms.items()}
    recent = replace(
        site.recent, examples=0, histograms=nothing, missing={"x1": 500}, duplicates=None, label_noise=None
    )
    found = analyse(replace(drawn, sites={"site-00": replace(site, recent=recent, withheld={})}), (), SETTINGS)
    assert of(found, "quality", "missing x1", "site-00").verdict == "drift"


def test_order_has_no_effect_and_findings_survive_json() -> None:
    """Sites in another order, and there and back through JSON, are the same findings to the bit."""
    drawn = check(1, 500, 4, GUARDED, Change("", "", inputs=0.5))
    found = analyse(drawn, (), SETTINGS)
    backwards = replace(drawn, sites=dict(reversed(list(drawn.sites.items()))))
    assert analyse(backwards, (), SETTINGS) == found
    assert Findings.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert analyse(Check.from_json(json.loads(json.dumps(drawn.to_json()))), (), SETTINGS) == found
