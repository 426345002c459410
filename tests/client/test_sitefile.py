"""site.toml: what ``join`` writes is valid, and every mistake is said in a line that names the key."""

import re
from pathlib import Path

import pytest

from client.data.section import FORMATS
from client.policy import NoiseRules, Policy, QualityRules, ReplayRules
from client.sitefile import MetricSection, SiteFile, TrainerSection, load_site, template
from fedretrain.errors import ConfigurationError


def test_the_template_is_a_valid_file_with_the_defaults(tmp_path: Path) -> None:
    """It names the site; what it sets is what a file without it means."""
    path = tmp_path / "site.toml"
    path.write_text(template("hospital-a"))
    site = load_site(path)
    assert "hospital-a" in path.read_text()
    assert (site.policy, site.trainer) == (Policy(), TrainerSection())


def test_the_template_explains_every_key() -> None:
    """Of each format, the policy and the trainer; nobody has to look elsewhere for what there is."""
    text = template("x")
    named = set(re.findall(r"^#? ?(\w+) =", text, re.MULTILINE)) | {"features", "replay", "noise", "quality"}
    sections = [*FORMATS.values(), Policy, ReplayRules, NoiseRules, QualityRules, MetricSection, TrainerSection]
    assert {key for section in sections for key in section.model_fields} - named == set()


@pytest.mark.parametrize("format_", FORMATS)
def test_each_formats_example_in_the_template_loads(tmp_path: Path, format_: str) -> None:
    """With the comment signs taken away, as an operator would do it."""
    text = template("x")
    lines = text[text.index("[data]") : text.index("# For every format")].splitlines()[2:]
    blocks = re.split(r"\n(?=format =)", "\n".join(line.removeprefix("# ") for line in lines))
    chosen = [block for block in blocks if block.startswith(f'format = "{format_ if format_ != "parquet" else "csv"}"')]
    block = chosen[0].replace('"csv"', f'"{format_}"')
    if format_ == "parquet":
        block = re.sub(r"^(delimiter|encoding) .*$", "", block, flags=re.MULTILINE)
    (tmp_path / "site.toml").write_text("[data]\n" + block)
    assert load_site(tmp_path / "site.toml").data.format == format_


NPZ = '[data]\nformat = "npz"\npath = "a"\n'
MISTAKES = {
    "data = 3": "data.format: expected one of",
    '[data]\nformat = "xls"': 'data.format: expected one of "npz", "csv"',
    '[data]\nformat = "npz"': "data.path: required",
    '[data]\nformat = "csv"\npath = "a"\nlable = "y"': "data.lable: unknown key; did you mean 'label'",
    '[data]\nformat = "npz"\npath = "a"\n[policy]\nmin_count = 1': "policy.min_count: expected at least 5 (",
    '[data]\nformat = "npz"\npath = "a"\n[policy]\nhours = ["9-17"]': 'policy.hours: expected times such as "22:00',
    '[data]\nformat = "npz"\npath = "a"\n[policy]\naproval = true': "did you mean 'approval'",
    '[data]\nformat = "npz"\npath = "a"\n[trainer]\nthreads = 0': "trainer.threads: expected at least 1 (",
    '[data]\nformat = "npz"\npath = "a"\n[trainer]\nbackend = "ours"': "such as \"my_models:build\", got 'ours'",
    '[data]\nformat = "npz"\npath = "a"\n[trainer]\nallow_modules = ["a-b"]': 'such as "our_layers" or',
    '[data]\nformat = "npz"\npath = "a"\n[policy]\nbundles = ["sha256:0"]': "bundles.0: expected a SHA-256: 64 digits",
    f"{NPZ}[policy.noise]\nepsilon = 0": "policy.noise.epsilon: expected at least 0.001 (",
    f'{NPZ}[policy.quality]\nleave_out = ["noise"]': "policy.quality.leave_out.0: expected one of missing, impossible,",
    f'{NPZ}[metrics.revenue]\nfunction = "a:b"': "metrics.revenue.unit: required",
    f'{NPZ}[metrics.x]\nfunction = "a:b"\nunit = "per year and bed"': "metrics.x.unit: expected a unit of at most 16",
    f'{NPZ}[metrics.x]\nfunction = "a:b"\nunits = "EUR"': "metrics.x.units: unknown key; did you mean 'unit'",
    "[data": "not readable as TOML",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_names_its_key(tmp_path: Path, text: str) -> None:
    """And the file it is in."""
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_site(tmp_path / "site.toml")
    assert MISTAKES[text] in str(caught.value)
    assert "match pattern" not in str(caught.value)
    assert str(tmp_path / "site.toml") in str(caught.value)


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    """'join' writes one."""
    with pytest.raises(ConfigurationError, match="fedretrain client join"):
        load_site(tmp_path / "site.toml")


def test_a_site_file_is_told_by_its_type(tmp_path: Path) -> None:
    """Whatever the format, it is a SiteFile."""
    (tmp_path / "site.toml").write_text('[data]\nformat = "npz"\npath = "a"')
    assert isinstance(load_site(tmp_path / "site.toml"), SiteFile)
