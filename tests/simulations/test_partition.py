"""Dividing one file among sites: every row at one site, as uneven as the scheme says, and the same every time."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedretrain.errors import ConfigurationError
from simulations.cli_partition import Division, app
from simulations.partition import Kind, Scheme, partition, site_names

LABELS = np.repeat(np.arange(10), 600)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(Kind),
    sites=st.integers(1, 40),
    fewest=st.integers(1, 3),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    seed=st.integers(0, 9),
)
@example(kind=Kind.dirichlet, sites=40, fewest=3, alpha=1e-3, seed=0)
@example(kind=Kind.quantity, sites=40, fewest=3, alpha=1e-3, seed=0)
def test_every_site_has_enough_rows(kind: Kind, sites: int, fewest: int, alpha: float, seed: int) -> None:
    """Whatever is drawn, each row has one owner among the sites, and none of them has fewer than it must have."""
    labels = np.random.default_rng(seed).integers(0, 5, 120)
    owners = Scheme(kind, sites, seed, fewest, alpha, fewest).owners(120, labels)
    assert owners.shape == (120,)
    counts = np.bincount(owners, minlength=sites)
    assert len(counts) == sites
    assert counts.min() >= (1 if kind is Kind.iid else fewest)


def test_two_shards_show_a_site_two_labels() -> None:
    """McMahan's split: 100 sites, 200 shards of one label each here, equal sizes."""
    owners = Scheme(Kind.shards, 100).owners(len(LABELS), LABELS)
    assert set(np.bincount(owners)) == {60}
    assert all(len(set(LABELS[owners == site])) <= 2 for site in range(100))
    assert len({frozenset(LABELS[owners == site]) for site in range(100)}) > 20  # not neighbours of the sorted rows


def test_shards_need_no_order_in_the_file() -> None:
    """Rows are sorted by label first, wherever they stand."""
    shuffled = np.random.default_rng(0).permutation(LABELS)
    owners = Scheme(Kind.shards, 100).owners(len(shuffled), shuffled)
    assert all(len(set(shuffled[owners == site])) <= 2 for site in range(100))


def test_alpha_says_how_much_sites_differ() -> None:
    """By Dirichlet shares, a small alpha leaves a site few labels; by quantity, sizes differ and labels do not."""

    def seen(alpha: float) -> float:
        owners = Scheme(Kind.dirichlet, 20, alpha=alpha).owners(len(LABELS), LABELS)
        return float(np.mean([len(set(LABELS[owners == site])) for site in range(20)]))

    assert seen(0.05) < 5
    assert seen(100) > 9
    owners = Scheme(Kind.quantity, 20, alpha=0.5).owners(len(LABELS), None)
    counts = np.bincount(owners)
    assert counts.max() > 5 * counts.min()
    assert len(set(LABELS[owners == counts.argmax()])) == 10


@pytest.mark.parametrize("kind", Kind)
def test_a_seed_decides_everything(kind: Kind) -> None:
    """The same seed divides alike, another one differently."""
    first, again, other = (Scheme(kind, 10, seed).owners(len(LABELS), LABELS) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_order_of_names_is_that_of_numbers() -> None:
    """The hundredth site does not come before the second."""
    assert site_names(100)[1::98] == ["site-002", "site-100"]
    assert sorted(site_names(1000)) == site_names(1000)


def test_the_command_writes_what_a_job_can_name(tmp_path: Path) -> None:
    """Arrays by site, weights along with them, nothing else of the file; the answer says how uneven it is."""
    arrays = {"x.a": np.arange(60.0).reshape(60, 1), "x.b": np.arange(60), "y": LABELS[::100], "slice": LABELS[::100]}
    np.savez(
        tmp_path / "all.npz", **arrays, sample_weight=np.arange(60.0), timestamp=np.arange(60) + 7, preprocessing="none"
    )
    options = ["--sites", "6", "--scheme", "shards", "--by", "slice", "--out", str(tmp_path / "parts"), "--json"]
    done = CliRunner().invoke(app, [str(tmp_path / "all.npz"), *options])
    assert done.exit_code == 0, done.output
    value = json.loads(done.output)
    assert (value["sites"], value["rows"]) == (6, 60)
    assert value["per_site"]["rows"] == [10, 10, 10]
    assert sorted(file.name for file in (tmp_path / "parts").iterdir()) == [
        "sample_weight.npy",
        "sites.json",
        "timestamp.npy",
        "x.a.npy",
        "x.b.npy",
        "y.npy",
    ]
    written = {
        name: np.load(tmp_path / "parts" / f"{name}.npy") for name in ("x.a", "x.b", "sample_weight", "timestamp")
    }
    np.testing.assert_array_equal(written["x.a"][:, 0], written["x.b"])
    np.testing.assert_array_equal(written["timestamp"], written["x.b"] + 7)
    np.testing.assert_array_equal(np.sort(written["sample_weight"]), np.arange(60))


@pytest.mark.parametrize(
    ("arrays", "scheme", "said"),
    [
        ({"x_train": LABELS}, Scheme(Kind.iid, 2), r"arrays x and y \(x.INPUT and .*, got x_train; .*savez.*x=..., y="),
        ({"x": LABELS, "y": LABELS, "labels": LABELS}, Scheme(Kind.iid, 2), "labels names the positions of y, which a"),
        ({"x": LABELS, "y": LABELS[1:]}, Scheme(Kind.iid, 2), "as many rows in each array"),
        ({"x": LABELS, "y": LABELS}, Scheme(Kind.shards, 4000), "--shards 2: expected at least 8000 rows, 2 for each"),
        ({"x": LABELS, "y": LABELS}, Scheme(Kind.quantity, 10, fewest=5000), "^--sites 10, --fewest 5000: .* 50000 "),
        ({"x": LABELS, "y": np.eye(10)[LABELS]}, Scheme(Kind.dirichlet, 2), "one label per row in the array 'y'"),
        ({"x": LABELS, "y": np.array([{}] * 6000)}, Scheme(Kind.iid, 2), "undamaged npz file of plain arrays"),
    ],
)
def test_a_file_that_cannot_be_divided_is_said(
    tmp_path: Path, arrays: dict[str, np.ndarray], scheme: Scheme, said: str
) -> None:
    """Missing arrays, uneven rows, too few rows, no labels, pickled objects: nothing is written."""
    np.savez(tmp_path / "all.npz", **arrays)
    with pytest.raises(ConfigurationError, match=said):
        partition(tmp_path / "all.npz", tmp_path / "parts", scheme)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("alpha", ["nan", "inf", "0"])
def test_alpha_is_a_finite_number_above_0(alpha: str) -> None:
    """No other reaches NumPy, which would draw nothing from it."""
    with pytest.raises(ConfigurationError, match="--alpha: expected a finite number above 0"):
        Scheme(Kind.dirichlet, 2, alpha=float(alpha))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--alpha 1", "--alpha: goes with --scheme dirichlet or --scheme quantity, got --scheme iid"),
        ("--shards 3 --scheme quantity", "--shards: goes with --scheme shards, got"),
        ("--fewest 3 --scheme shards", "--fewest: goes with"),
        ("--by nothing", "--by nothing: expected one of the arrays x, y"),
        ("--by nothing --scheme shards", "--by nothing: expected one of the arrays x, y"),
        ("--alpha nan --scheme dirichlet", "--alpha: expected a finite number"),
    ],
)
def test_an_option_without_effect_is_refused(options: str, said: str, tmp_path: Path) -> None:
    """What the scheme takes no notice of, and an array that is not there; nothing is written."""
    np.savez(tmp_path / "all.npz", x=LABELS, y=LABELS)
    done = CliRunner().invoke(app, [str(tmp_path / "all.npz"), *options.split(), "--out", str(tmp_path / "parts")])
    assert isinstance(done.exception, ConfigurationError)
    assert said in str(done.exception)
    assert not (tmp_path / "parts").exists()


def test_the_command_knows_every_kind() -> None:
    """The command's own list, which loads no NumPy, is that of the schemes."""
    assert [*Division] == [*Kind]
