"""`server drift`, `plan`, `approve` and `reject` from the command line: what they show, write and refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedretrain import cli
from fedretrain.job import load_job
from server.drift.findings import Estimate
from server.drift_plot import MOST, POOLED, chosen, draw, panels, unanswered
from server.history import History, history_path
from server.watching_text import drift_lines, finding_lines, report, site_lines

from .test_watching import a_plan
from .upkit import make_job
from .watched import a_check, a_site, a_window, some_findings

pytestmark = pytest.mark.usefixtures("unflushed")

OUT = Path("out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checks, of which the second drifted and the third did not, and a plan to do nothing."""
    job = load_job(make_job(tmp_path))
    with History.open(history_path(tmp_path / "out")) as history:
        for number, drift in ((1, False), (2, True), (3, False)):
            history.add_check(a_check(number), some_findings(number, drift=drift))
        history.add_plan(a_plan(action="nothing").to_json(), job.model_dump(mode="json"))
    return tmp_path / "out"


def ask(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command prints; it ends with ``code``."""
    ended = cli.run(["server", *arguments, "--folder", str(folder)])
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    return said.out if code == 0 else said.err


def test_drift_over_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a check, with drifts by kind, "-" where nothing could be said; then the latest, with what is not told."""
    said = ask(capsys, folder, "drift")
    rows = [line.split() for line in said.splitlines() if line.startswith("check-")]
    assert [row[0] for row in rows] == ["check-1", "check-2", "check-3"]
    assert [row[-9:-4] for row in rows] == [[n, "-", "-", "-", "-"] for n in ("0", "2", "0")]
    assert all(row[-4:] == ["75.0%", "(72.0%", "to", "78.0%)"] for row in rows)
    assert "south  400     800     calibration (policy)" in said
    assert "! west did not answer: policy at hours: 22:00-06:00" in said
    assert "no drift found in 2 questions; 1 more has too little data" in said
    assert "too little data to say: concept 1" in said
    assert "75.0% (72.0% to 78.0%, 800 examples) recently; 90.0% (88.0% to 92.0%, 1000 examples) before" in said
    assert "north: revenue 12.5 EUR" in said
    value = json.loads(ask(capsys, folder, "drift", "--json"))
    assert [one["check"] for one in value["checks"]] == ["check-1", "check-2", "check-3"]
    assert value["findings"][1] == some_findings(2).to_json()
    assert value["checks"][0]["sites"]["south"]["withheld"] == {"calibration": "policy"}


def test_an_accuracy_that_nobody_knows_is_not_in_the_table() -> None:
    """Where its interval is wider than 0.3; the line below has it with the interval."""
    found = some_findings(1)
    pooled = replace(found.performance[0], recent=Estimate(0.339, 0.0, 1.0, 40))
    unsure = replace(found, performance=(pooled,))
    [row] = [line for line in drift_lines([a_check(1)], [unsure], 1, OUT) if line.startswith("check-1")]
    assert row.split()[-1] == "-"
    assert "33.9% (0.0% to 100.0%, 40 examples) recently" in "".join(drift_lines([a_check(1)], [unsure], 1, OUT))


def test_a_headline_counts_the_questions_that_are_answered() -> None:
    """Those without an answer are told apart; where none has one, no drift is not claimed."""
    drifted = some_findings(1)
    little = replace(drifted, findings=drifted.findings[2:])
    assert next(finding_lines(drifted, OUT)) == "drift in 2 of 2 questions; 1 more has too little data"
    many = replace(drifted, findings=tuple(replace(drifted.findings[0], subject=f"f{n}") for n in range(14)))
    assert "  and 2 more: fedretrain server drift --report FILE.md --folder out" in list(finding_lines(many, OUT))
    assert next(finding_lines(little, OUT)) == "too little data to say anything (1 question)"
    assert next(finding_lines(replace(drifted, findings=drifted.findings[:1]), OUT)) == "drift in 1 of 1 question"


def test_a_plan_is_shown_and_decided(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the beginning of its id; then it shows who decided and why, and cannot be decided again."""
    value = json.loads(ask(capsys, folder, "plan", "--json"))
    assert value["plan"]["action"] == "nothing"
    assert (value["decision"], value["score"]) == (None, None)
    short = value["plan"]["id"][:8]
    assert "--why" in ask(capsys, folder, "reject", short, code=2)
    assert "there is nothing to approve" in ask(capsys, folder, "approve", short, code=2)
    assert "rejected by ann" in ask(capsys, folder, "reject", short, "--by", "ann", "--why", "too early")
    assert "rejected by ann" in ask(capsys, folder, "reject", short, "--why", "no", code=2)
    assert "too early" in ask(capsys, folder, "plan")


def test_a_plan_is_not_decided_by_wrong_names(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As before a check; the plan that there is stays."""
    job = make_job(tmp_path)
    job.write_text(job.read_text() + "\n[watch.edges]\nbrightnes = [1]\n")
    assert "did you mean 'brightness'" in ask(capsys, folder, "plan", str(job), code=2)
    assert json.loads(ask(capsys, folder, "plan", "--json"))["plan"]["action"] == "nothing"


def test_where_nothing_was_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says so, and what to do; no folder is made."""
    for command in (["drift"], ["plan"], ["approve", "abcd"], ["reject", "abcd", "--why", "x"]):
        assert "server watch JOB.toml" in ask(capsys, tmp_path / "none", *command, code=2)
    assert "--every: expected a whole number and one of s, m, h, d, w" in ask(
        capsys, tmp_path / "none", "watch", "job.toml", "--every", "6 hours", code=2
    )
    assert not (tmp_path / "none").exists()


def test_a_window_that_is_withheld_is_not_an_empty_one() -> None:
    """Nothing is told of fewer examples than a site's smallest count, 5; without ``since`` there are none before."""
    none = a_window(0, 0)
    few = a_check(1)
    few = replace(few, sites={"north": a_site("north", none, a_window(200, 600, right=600))})
    assert list(site_lines(few))[1].split()[:3] == ["north", "800", "<5"]
    assert list(site_lines(replace(few, since=None)))[1].split()[:3] == ["north", "800", "0"]
    found = some_findings(1)
    found = replace(found, findings=(replace(found.findings[1], n_reference=0, n_recent=0),))
    [row] = [line for line in report([few], [found], "drift.png", 0) if line.startswith("| covariate")]
    assert row.split(" | ")[-3:-1] == ["<5", "0"]  # recent ones there are; this question has none of them


def test_what_to_type_names_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is not the default one; who named none is told of checks of simulated sites."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        short = json.loads(ask(capsys, folder, "plan", "--json"))["plan"]["id"][:8]
        latest = a_plan(action="full")
        with History.open(history_path(folder)) as history:
            history.add_plan(latest.to_json(), history.plans()[-1].job)
        assert "see: fedretrain server plan --folder out\n" in ask(capsys, folder, "approve", short, code=2)
        empty = ask(capsys, folder.parent / "none", "plan", code=2)
        assert "make one: fedretrain server watch JOB.toml --folder none\n" in empty
        assert "watch JOB.toml\n" in ask(capsys, Path("federation"), "plan", code=2)
        folder.rename(folder.parent / "watched")
        assert "add --folder watched\n" in ask(capsys, Path("federation"), "plan", code=2)


def test_a_picture_and_a_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report has the picture beside it, a PNG file, and every finding of the latest check in a table."""
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    assert "--plot: expected a file that ends in .png" in ask(capsys, folder, "drift", "--plot", "x.jpg", code=2)
    report = tmp_path / "drift.md"
    ask(capsys, folder, "drift", "--report", str(report))
    assert report.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = report.read_text()
    assert "](drift.png)" in text
    assert "| covariate | age | north | 0.5 | 0.5 | 0.02 | 1e-12 | 1000 | 800 | no drift |" in text
    assert "- south: calibration (policy)" in text


def test_what_a_picture_shows() -> None:
    """A panel a subject, a line a site, pooled first; no point for too little data; the furthest of many."""
    found = [some_findings(1, drift=False), some_findings(2)]
    [panel] = panels(found)
    assert (panel.kind, panel.subject, list(panel.lines)) == ("covariate", "age", [POOLED, "north"])
    assert [(point.effect, point.drift) for point in panel.lines["north"]] == [(0.5, False), (0.5, True)]
    one = found[0].findings[1]
    many = [replace(one, subject=f"f{n:03d}", effect=n / 100) for n in range(MOST + 5)]
    kept = chosen(panels([replace(found[0], findings=tuple(many))]))
    assert [panel.subject for panel in kept] == [f"f{n:03d}" for n in range(5, MOST + 5)]


def test_where_a_picture_begins_and_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Effects from 0 on, the least one that counts as a dashed line, and who has no point by name."""
    figure = pytest.importorskip("matplotlib.figure", reason="the extra plot is not installed").Figure
    saved: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, file, **_: (saved.append(self), Path(file).touch()))
    found = some_findings(2)
    silent = replace(found.findings[1], site="south", verdict="too little data")
    found = replace(found, findings=(*found.findings, silent))
    assert unanswered([found], panels([found])) == ["south"]
    draw([found], tmp_path / "drift.png", 0.1)
    [picture] = saved
    assert "no point of south: too little data" in picture.get_suptitle()
    axes = picture.axes[0]
    assert axes.get_ylim()[0] == 0.0
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [0.1]
