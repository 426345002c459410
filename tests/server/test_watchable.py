"""Names in [watch] and [plan] that are wrong are refused before a site is asked."""

from pathlib import Path
from typing import Any

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, load_job
from server import provision
from server.federation_file import Settings
from server.watchable import check_names

from .upkit import make_job

pytestmark = pytest.mark.usefixtures("unflushed")


def job_with(tmp_path: Path, **tables: Any) -> Job:
    values = load_job(make_job(tmp_path)).model_dump(mode="json") | tables
    return Job.model_validate(values, strict=False)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("brightness", None),
        ("left.sharpness", None),
        ("column 63", None),
        ("projection 7", None),
        ("age", None),
        ("table.age", None),
        ("projection 8", "got 'projection 8'; did you mean 'projection"),
        ("brightnes", "got 'brightnes'; did you mean 'brightness'"),
        ("column x", "expected names of what is watched, such as age, brightness,"),
    ],
)
def test_edges_of_what_no_model_has(tmp_path: Path, name: str, wrong: str | None) -> None:
    """Summaries, numbered columns, the job's own columns and as many projections as there are."""
    job = job_with(tmp_path, watch={"edges": {name: [1.0]}}, contract={"columns": ["age"]})
    if wrong is None:
        check_names(job, tmp_path / "out")
        return
    with pytest.raises(ConfigurationError, match=r"watch\.edges: ") as caught:
        check_names(job, tmp_path / "out")
    assert wrong in str(caught.value)


def test_hours_of_sites_that_there_are_not(tmp_path: Path) -> None:
    """Of a federation's members, and of the sites that its file names."""
    settings = Settings(name="clinics", address="127.0.0.1:1", listen="127.0.0.1:1")
    made = provision.init(tmp_path / "fed", settings)
    provision.make_kits(made, ["hospital-a"], tmp_path / "kits")
    check_names(job_with(tmp_path, plan={"site_hours": {"hospital-a": {"hours": ["22:00-06:00"]}}}), made.folder)
    mistaken = job_with(tmp_path, plan={"site_hours": {"hospital-b": {"hours": ["22:00-06:00"]}}})
    with pytest.raises(ConfigurationError, match=r"plan.site_hours: .* such as hospital-a, got 'hospital-b'; did you"):
        check_names(mistaken, made.folder)
