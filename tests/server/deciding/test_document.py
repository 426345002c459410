"""A plan as a document for people."""

from server.deciding.document import markdown
from server.deciding.evidence import Estimate, Evidence, Signal
from server.deciding.plan import Alternative, Cost, Range
from server.deciding.score import score
from server.history import Decision

from .kept import NOW, past, plan, result

EVIDENCE = Evidence(
    NOW,
    release="abcdef0123456789ffff",
    released_at=NOW,
    signals=(Signal("covariate", 0.42, 2, 3, 2, "age"),),
    metric=Estimate(0.7, 0.65, 0.75, 120),
    expected_accuracy=0.72,
    new_examples=40,
    old_examples=None,
    new_labels=(("8", 12),),
    sites=3,
    withheld=("b: labels (policy)",),
    past=(past("replay", gain=-0.02),),
    site_hours=(("c", ("22:00-06:00",)),),
)
PLAN = plan(
    "replay",
    {"mode": "replay", "replay_share": 0.5},
    evidence=EVIDENCE,
    alternatives=(Alternative("full", Range(0.1, 0.2, 0.3), Cost(seconds=Range(60, 300, 600)), "It costs | more."),),
    cost=Cost(seconds=Range(5, 10, 20), bytes=Range(1000, 2000, 4000), kwh=Range(0.1, 0.2, 0.4), runs=2),
)


def test_the_document_has_all_that_a_decision_needs() -> None:
    """Evidence, rule, threshold, alternatives, gain and cost with ranges, and what would change its mind."""
    text = markdown(PLAN)

    for line in (
        f"# Plan {PLAN.id[:16]}: retrain on what is new, mixed with old examples",
        "Drift in inputs.",
        "| rule | covariate-drift |",
        "| threshold | drift in 2 checks in a row |",
        "| release in use | abcdef0123456789 |",
        "| accuracy on recent data | 70.0 % (65.0 to 75.0, 120 examples) |",
        "| examples since the release, and before | 40, unknown |",
        "| labels the model does not know | 8 (12) |",
        "| covariate | age | 0.42 | 2 of 3 | 2 |",
        "Not told by sites: b: labels (policy).",
        "Hours of sites: c 22:00-06:00.",
        "| 2026-03-01 12:00 UTC | replay | released | -2.0 points |  | 10.0 s | 100 B |",
        "| gain in accuracy | +10.0 points | +5.0 points to +15.0 points |",
        "| time | 10.0 s | 5.0 s to 20.0 s |",
        "| sent | 2 kB | 1 kB to 4 kB |",
        "| energy | 0.2 kWh | 0.1 kWh to 0.4 kWh |",
        "| train.replay.share | 0.5 |",
        "| retrain on all data | +20.0 points (+10.0 points to +30.0 points) | 5 min 0 s | It costs \\| more. |",
        "- More data.",
        f"| id | `{PLAN.id}` |",
    ):
        assert line in text.splitlines(), line
    assert "stated priors" in text
    assert "## Decision" not in text


def test_the_document_says_who_decided_and_what_came_of_it() -> None:
    """Beside what was expected."""
    decision = Decision("approved", "Ada", "the new scanner", "2026-03-01", "run-1")

    text = markdown(PLAN, decision, score(PLAN, result("run-1", kwh=0.9)))

    assert "approved by Ada at 2026-03-01: the new scanner." in text
    assert "| gain in accuracy | +5.0 points to +15.0 points | +10.0 points | yes |" in text
    assert "| energy | 0.1 kWh to 0.4 kWh | 0.9 kWh | no |" in text


def test_what_is_not_known_is_left_out() -> None:
    """A plan that does nothing has neither gain nor cost, and its document no section about them."""
    text = markdown(plan("nothing", {}, gain=None, cost=None, would_change=(), evidence=Evidence(NOW, too_little=True)))

    assert ": do nothing\n" in text
    assert "too few data" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Evidence", "## Alternatives"]
