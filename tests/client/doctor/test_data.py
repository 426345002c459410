"""The doctor on a site's data and a step of training: the column or label is named, a value never."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client import approvals
from client.doctor import data
from client.doctor.finding import Finding
from client.doctor.trial import findings
from client.home import Home
from client.store import SiteStore

from .jobs import BASE, job

ROOT = Path(__file__).parents[3]
SITE = """[data]
format = "{format}"
path = "{path}"
{data}
[policy]
approval = true
[trainer]
backend = "tests.client.numpy_backend:Backend"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A site with 20 good examples, asked to prepare run-7, with its base model."""
    home = Home(tmp_path / "home")
    home.make()
    write(home)
    store = SiteStore(home.store)
    store.put_run("run-7", job())
    store.put_base(job().contract.base, BASE)
    return home


def write(home: Home, **arrays: Any) -> None:
    """The site's data, some of them replaced."""
    good = {"x": np.ones((20, 3), "float32"), "y": np.arange(20) % 2}
    np.savez(home.root / "data.npz", **{name: a for name, a in {**good, **arrays}.items() if a is not None})
    home.site.write_text(SITE.format(format="npz", path="data.npz", data=""))


def the_problem(home: Home) -> Finding:
    (found,) = [finding for finding in findings(home, step=True) if finding.state == "problem"]
    assert found.why
    assert found.do
    return found


def test_good_data_and_a_step(home: Home) -> None:
    """Examples are counted against the run they were checked for, and a step of that run is timed."""
    data, step = findings(home, step=True)
    assert (data.state, data.what) == ("ok", "20 examples, as the contract of run run-7 asks")
    assert step.state == "ok"
    assert "s a step of run run-7" in step.what


def test_fault_32_a_missing_column(home: Home) -> None:
    """An array that is not there, and an array with a column too few: which one, and what is expected."""
    write(home, y=None)
    assert (the_problem(home).cause, "at y" in the_problem(home).what) == ("data-missing", True)
    write(home, x=np.ones((20, 2), "float32"))
    found = the_problem(home)
    assert found.cause == "data-shape"
    assert "x column 2 (weight)" in found.what


def test_fault_32_a_missing_column_of_a_table(home: Home) -> None:
    """Of a csv file: the column's name."""
    rows = "age,pulse,ill\n" + "60,70,ill\n61,71,healthy\n" * 10
    (home.root / "data.csv").write_text(rows)
    text = SITE.format(format="csv", path="data.csv", data='label = "ill"\ncolumns = ["age", "pulse", "weight"]\n')
    home.site.write_text(text)
    found = the_problem(home)
    assert found.cause == "data-missing"
    assert "weight" in found.what


def test_fault_33_an_unknown_label(home: Home) -> None:
    """The output is named, the value is not."""
    write(home, y=np.full(20, 4711))
    found = the_problem(home)
    assert found.cause == "label-unknown"
    assert "at y" in found.what
    assert "4711" not in str(found)


def test_a_reader_of_the_sites_own_that_fails(home: Home) -> None:
    """Where it failed and with what class of error; not the text of it, which may quote data."""
    (home.root / "own.py").write_text("def load(contract):\n    raise KeyError('4711')\n")
    home.site.write_text('[data]\nformat = "function"\nfunction = "own:load"\npath = "."\n')
    found = the_problem(home)
    assert found.cause == "data-unreadable"
    assert "KeyError" in found.what
    assert "own.py:2 in load" in found.what
    assert "4711" not in found.what


def test_data_before_any_job(home: Home) -> None:
    """Without a job only whether the data are there can be said; nothing can be tried with another backend."""
    for file in (home.store / "runs").iterdir():
        file.unlink()
    assert [finding.state for finding in findings(home, step=True)] == ["ok", "skipped"]
    (home.root / "data.npz").unlink()
    assert the_problem(home).cause == "data-unreadable"


def test_the_base_model_has_not_arrived(home: Home) -> None:
    """Then no step is tried, and that is said."""
    for file in (home.store / "base").iterdir():
        file.unlink()
    assert [finding.state for finding in findings(home, step=True)] == ["ok", "skipped"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", ""),
        ('jobs = ["digits-*"]', "jobs, expected one that fits digits-*"),
        ("min_examples = 30", "min_examples, expected at least 30 examples to train on"),
        ("max_rounds = 3", "max_rounds, expected at most 3"),
    ],
)
def test_a_job_that_the_policy_refuses_is_said(
    home: Home, monkeypatch: pytest.MonkeyPatch, rule: str, said: str
) -> None:
    """In one line, with the rule; it is the operator's will, and no problem."""
    monkeypatch.setattr(Home, "load_kit", lambda _home: SimpleNamespace(federation="clinics", site="a"))
    home.kit.touch()
    home.site.write_text(home.site.read_text().replace("[policy]", f"[policy]\n{rule}"))
    found = [finding for finding in findings(home, step=False) if finding.subject == "policy"]
    assert {finding.state for finding in found} <= {"note"}
    expected = f"the next round of run run-7 would be refused: {said}" if said else ""
    assert "".join(finding.what for finding in found) == expected


def test_a_wrong_site_file(home: Home) -> None:
    """One problem, and nothing is read."""
    home.site.write_text('[data]\nformat = "npz"\npfad = "data.npz"\n')
    (found,) = data.examine_data(home)
    assert found.cause == "site-file"
    assert "pfad" in found.what


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
def test_in_a_process_of_its_own(home: Home, tmp_path: Path) -> None:
    """Data, step, policy in words and what waits for a person; a process that is killed is one problem."""
    assert not approvals.is_approved(home, job())
    with environment(PYTHONPATH=str(ROOT)):
        found = list(data.examine_data(home))
        assert [f.subject for f in found[:2]] == ["data", "step"]
        assert {f.state for f in found if f.subject == "policy"} == {"ok"}
        assert [f.state for f in found if f.subject == "approval"] == ["note"]
        dies = tmp_path / "dies"
        dies.touch()
        with environment(BACKEND_DIES=str(dies)):
            (problem,) = [f for f in data.examine_data(home) if f.state == "problem"]
    assert problem.cause == "trainer-failure"
    assert "ended by signal 9, as when memory runs out" in problem.what


def test_nothing_heavy_is_imported_to_read_data(home: Home) -> None:
    """Reading and checking arrays needs no TensorFlow."""
    code = (
        "import sys; from pathlib import Path; from client.doctor.trial import findings; from client.home import Home;"
        "list(findings(Home(Path(sys.argv[1])), step=False)); sys.exit('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(home.root)]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 0


def test_what_the_policy_leaves_out_and_business_metrics(home: Home) -> None:
    """A gap is left out as the policy says; a metric that gives a number is fine, one that fails is a problem."""
    write(home, x=np.where(np.arange(60).reshape(20, 3) == 0, np.nan, np.float32(1)))
    assert the_problem(home).cause == "data-not-finite"
    code = "def fine(arrays):\n    return float(arrays['x'].sum())\n\ndef failing():\n    raise ValueError('Aurelia')\n"
    (home.root / "own_metrics_b.py").write_text(code)
    more = "".join(
        f'[metrics.{name}]\nfunction = "own_metrics_b:{name}"\nunit = "EUR"\npath = "."\n'
        for name in ("fine", "failing")
    )
    home.site.write_text(home.site.read_text() + '[policy.quality]\nleave_out = ["missing"]\n' + more)
    read, fine, failing = list(findings(home, step=False))[:3]
    assert "19 examples" in read.what
    assert "left out by [policy.quality]: 1 for missing" in read.what
    assert (fine.state, failing.state, failing.cause) == ("ok", "problem", "metric-failed")
    assert "57" not in fine.what
    assert "Aurelia" not in failing.what + failing.why + failing.do


def test_business_metrics_before_the_first_job(tmp_path: Path) -> None:
    """A function that is there is fine, one that cannot be imported is a problem: no job is needed to see it."""
    home = Home(tmp_path / "home")
    home.make()
    write(home)
    (home.root / "own_metrics_c.py").write_text("def fine(arrays):\n    return 1.0\n")
    more = "".join(
        f'[metrics.{name}]\nfunction = "own_metrics_c:{name}"\nunit = "EUR"\npath = "."\n' for name in ("fine", "gone")
    )
    home.site.write_text(home.site.read_text() + more)
    fine, gone = (found for found in findings(home, step=False) if found.subject == "metric")
    assert (fine.state, gone.state, gone.cause) == ("ok", "problem", "metric-failed")
    assert "AttributeError" in gone.what
