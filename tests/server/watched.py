"""Checks, findings and plans to watch by, made by hand: two sites, one feature, one output."""

from datetime import UTC, datetime, timedelta

from fedretrain.contract import Feature
from server.checking.document import Check, SiteCheck, Window
from server.drift.findings import Estimate, Finding, Findings, Performance

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
AGE = Feature(name="age", kind="column", input="x", index=0, edges=(40.0,))


def a_window(*ages: int, right: int | None = None) -> Window:
    """One with that histogram of ages, and that many right answers."""
    n = sum(ages)
    bins = (*(0,) * 9, n)
    told = right is not None
    return Window(
        examples=n,
        histograms={"age": ages},
        missing={"age": 0},
        impossible={"age": 0},
        constant=(),
        duplicates=0,
        label_noise=0,
        labels={"y": (n, 0, 0)},
        predicted={"y": (n, 0)},
        confusion={},
        confidence={"y": bins},
        confidence_sum={"y": (*(0.0,) * 9, 0.95 * n)},
        right={"y": (*(0,) * 9, right) if told else (None,) * 10},
        labelled={"y": bins if told else (None,) * 10},
        age=(n, 0, 0, 0, 0, 0),
    )


def a_site(name: str, reference: Window, recent: Window, **withheld: str) -> SiteCheck:
    """One that tells all but what is ``withheld``, with no noise."""
    return SiteCheck(name, reference, recent, withheld, 5, None, {"revenue": (12.5, "EUR")}, ())


def a_check(number: int, *, at: str | None = None, release: str | None = None) -> Check:
    """The check of that number, a day after the one before."""
    sites = {
        "north": a_site("north", a_window(500, 500, right=900), a_window(200, 600, right=600)),
        "south": a_site("south", a_window(400, 400), a_window(300, 100), calibration="policy"),
    }
    return Check(
        check=f"check-{number}",
        at=at or (BEGIN + timedelta(days=number)).isoformat(),
        job="0" * 64,
        release=release,
        contract="1" * 64,
        since=BEGIN.isoformat(),
        labels={"y": ("a", "b", "unknown")},
        features=(AGE,),
        sites=sites,
        declined={"west": "policy at hours: 22:00-06:00"},
        seconds=3.0,
        bytes=12_345,
    )


def some_findings(number: int, *, drift: bool = True) -> Findings:
    """What might be found in ``a_check``: ages that shifted, and no answer about what they mean."""
    verdict = "drift" if drift else "no drift"
    return Findings(
        check=f"check-{number}",
        at=(BEGIN + timedelta(days=number)).isoformat(),
        findings=(
            Finding("covariate", "age", None, 0.3, 0.02, 1e-9, 0.3, 1800, 1200, verdict, "Age changed."),
            Finding("covariate", "age", "north", 0.5, 0.02, 1e-12, 0.5, 1000, 800, verdict, "Age at north changed."),
            Finding("concept", "y", None, 0.0, 0.0, None, 0.0, 0, 0, "too little data", "Too little data."),
        ),
        performance=(
            Performance("y", None, Estimate(0.9, 0.88, 0.92, 1000), Estimate(0.75, 0.72, 0.78, 800), 0.95),
            Performance("y", "north", Estimate(0.9, 0.88, 0.92, 1000), Estimate(0.75, 0.72, 0.78, 800), 0.95),
        ),
    )
