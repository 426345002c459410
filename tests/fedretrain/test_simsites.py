"""A simulation's sites are places where rows lie: files of their own, or rows of one folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.errors import ConfigurationError, DataMismatch
from fedretrain.job import Job, parse_job
from fedretrain.simsites import SiteSource, simulated_sites, write_sites

CONTRACT = Contract(
    inputs=(InputSpec(name="in", shape=(2,), dtype="float32"),),
    outputs=(OutputSpec(name="out", shape=(3,), kind="multiclass", loss="", labels=("a", "b", "c")),),
    preprocessing=None,
    architecture="",
    base="",
    variables=(),
)
X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])


def job_over(folder: Path, sites: str, **simulation: Any) -> Job:
    """A job whose model and holdout are only there by name."""
    for name in ("base.keras", "old.npz"):
        (folder / name).touch()
    raw = {
        "model": {"path": "base.keras"},
        "holdout": [{"name": "old", "path": "old.npz"}],
        "simulation": {"sites": sites, **simulation},
    }
    return parse_job(raw, folder / "job.toml")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with two sites, written in another order than that of their names."""
    rows = {"b": np.array([5, 0]), "a": np.array([1, 2, 3, 4])}
    write_sites(tmp_path / "parts", {"x": X, "y": Y}, rows, "as they are")
    return tmp_path / "parts"


def test_a_folder_of_rows_gives_each_site_its_own(parts: Path) -> None:
    """Sites come by name with the rows they were given, mapped instead of read, and with what is said about them."""
    sites = simulated_sites(job_over(parts.parent, "parts"))
    assert list(sites) == ["a", "b"]
    assert [s.rows for s in sites.values()] == [4, 2]
    data = sites["b"].load(CONTRACT)
    np.testing.assert_array_equal(data.x["in"], X[[5, 0]])
    np.testing.assert_array_equal(data.y["out"], Y[[5, 0]])
    assert data.preprocessing == "as they are"
    assert not data.x["in"].flags.writeable
    other = sites["a"].load(CONTRACT).x["in"]
    assert other.base is not None
    assert other.base is data.x["in"].base


def test_a_pattern_gives_a_file_to_each_site(tmp_path: Path) -> None:
    """One npz file per site, by its name."""
    np.savez(tmp_path / "s-2.npz", x=X[2:], y=Y[2:])
    np.savez(tmp_path / "s-1.npz", x=X[:2], y=Y[:2])
    sites = simulated_sites(job_over(tmp_path, "s-*.npz"))
    assert list(sites) == ["s-1", "s-2"]
    assert sites["s-1"].rows is None
    np.testing.assert_array_equal(sites["s-1"].load(CONTRACT).x["in"], X[:2])


def test_a_job_can_ask_for_the_first_sites_only(parts: Path) -> None:
    """By name, from a folder as from a pattern, and the data do not have to be there twice."""
    assert list(simulated_sites(job_over(parts.parent, "parts", first=1))) == ["a"]
    for name in ("s-1.npz", "s-2.npz"):
        (parts.parent / name).touch()
    assert list(simulated_sites(job_over(parts.parent, "s-*.npz", first=1))) == ["s-1"]


def test_a_source_survives_json(parts: Path) -> None:
    """What a worker process is told is the same source."""
    sources = [*simulated_sites(job_over(parts.parent, "parts")).values(), SiteSource("c", parts / "c.npz")]
    assert [SiteSource.from_json(v) for v in json.loads(json.dumps([s.to_json() for s in sources]))] == sources


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ["a", "a"]}, "names: expected each once"),
        ({"names": ["a", "../b"]}, "names.1: expected 1 to 64 letters"),
        ({"offsets": [0, 4]}, "offsets: expected one more than names"),
        ({"offsets": [0, 7, 6]}, "never less than the one before"),
        ({"format": "fedretrain.sites/9"}, "expected fedretrain.sites/1: format"),
    ],
)
def test_an_index_that_is_wrong_is_said_in_one_line(parts: Path, change: dict[str, Any], said: str) -> None:
    """Names twice or not fit for a site, offsets that do not fit, and another format are mistakes of the file."""
    index = json.loads((parts / "sites.json").read_bytes())
    (parts / "sites.json").write_text(json.dumps(index | change))
    with pytest.raises(ConfigurationError, match=said) as caught:
        simulated_sites(job_over(parts.parent, "parts"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_index_is_no_partition(tmp_path: Path) -> None:
    """A folder of something else is answered with what is expected and the command that makes it."""
    (tmp_path / "parts").mkdir()
    with pytest.raises(ConfigurationError, match="`fedretrain partition` wrote"):
        simulated_sites(job_over(tmp_path, "parts"))


def test_arrays_that_are_short_or_damaged_are_refused(parts: Path) -> None:
    """No site trains on fewer rows than its index promises, or on bytes that are no array."""
    site = simulated_sites(job_over(parts.parent, "parts"))["b"]
    np.save(parts / "x.npy", X[:5])
    with pytest.raises(DataMismatch, match=r"data-unreadable at parts/x.npy: expected 6 rows or more, as sites.json"):
        site.load(CONTRACT)
    (parts / "sites.json").touch()  # a folder is looked at again when its index is another
    (parts / "x.npy").write_bytes(b"not an array")
    with pytest.raises(DataMismatch, match=r"data-unreadable at parts/x.npy: expected an undamaged array"):
        site.load(CONTRACT)
    (parts / "sites.json").unlink()
    with pytest.raises(DataMismatch, match="data-unreadable at parts: expected a folder"):
        site.load(CONTRACT)


def test_a_partition_is_never_written_over(parts: Path) -> None:
    """A run that is to be resumed finds its sites as they were."""
    with pytest.raises(ConfigurationError, match="there is a partition already"):
        write_sites(parts, {"x": X, "y": Y}, {"a": np.arange(6)})
