"""What one check found, site by site: counts alone, as they were admitted, and nothing concluded from them.

Format ``fedretrain.check/1``: the JSON object that ``Check.to_json`` gives, field by field what stands here; a count
that a site withheld is null.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedretrain.contract import Feature
from fedretrain.errors import ConfigurationError

FORMAT = "fedretrain.check/1"

Counts = tuple[int | None, ...]
"""None: withheld. Where its section is not, the count lies from 0 to less than the site's smallest count."""


@dataclass(frozen=True)
class Window:
    """What a site counted over one part of its examples; fields as ``fedretrain.checks`` says.

    Attributes:
        examples: Complete examples; 0 where they are fewer than the site's smallest count.
        histograms: By feature.
        missing: Rows without a finite value, by column that is a feature, or by input.
        impossible: Rows with a value that the contract does not allow, likewise.
        constant: Features that have one value only.
        duplicates: Examples that repeat an earlier one.
        label_noise: Examples that the model confidently takes for another label.
        labels: By output; of the contract's labels, of those the job looks for, and of all others, "unknown".
        predicted: By output; of the contract's labels.
        confusion: By output; [true][predicted], of the contract's labels.
        confidence: By output; in ten bins of the greatest probability, all examples.
        confidence_sum: By output; sum of the confidences in each bin.
        right: By output; right answers in each bin, of labelled examples.
        labelled: By output; labelled examples in each bin.
        age: Examples by age in days, between ``fedretrain.checks.AGE_EDGES_DAYS``.
    """

    examples: int
    histograms: Mapping[str, Counts]
    missing: Mapping[str, int | None]
    impossible: Mapping[str, int | None]
    constant: tuple[str, ...]
    duplicates: int | None
    label_noise: int | None
    labels: Mapping[str, Counts]
    predicted: Mapping[str, Counts]
    confusion: Mapping[str, tuple[Counts, ...]]
    confidence: Mapping[str, Counts]
    confidence_sum: Mapping[str, tuple[float | None, ...]]
    right: Mapping[str, Counts]
    labelled: Mapping[str, Counts]
    age: Counts


@dataclass(frozen=True)
class SiteCheck:
    """One site's answer.

    Attributes:
        site: Its name.
        reference: Over its examples before ``Check.since``.
        recent: Over those from then on.
        withheld: By section that is not in it: why, one of ``fedretrain.checks.REASONS``.
        min_count: The smallest count that leaves the site.
        epsilon: Of the noise on every count, as the site says; None where there is none.
        business: By metric that the site declares: value and unit.
        events: What its detector saw in the stream of its examples: (what, Unix seconds at the beginning of the day).
        declines: Modes of training that its policy does not allow; documents without it are read as with none.
    """

    site: str
    reference: Window
    recent: Window
    withheld: Mapping[str, str]
    min_count: int
    epsilon: float | None
    business: Mapping[str, tuple[float, str]]
    events: tuple[tuple[str, int], ...]
    declines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One check of all sites.

    Attributes:
        check: Its id, that of its folder.
        at: When it was asked, UTC in ISO 8601.
        job: Digest of the job.
        release: Id of the release in use; None where nothing is released and the job's model was watched.
        contract: Digest of the contract with the features, which checks must share to be compared cell by cell.
        since: From when on examples are recent, UTC in ISO 8601; None: all of them are.
        labels: By output, the labels that ``Window.labels`` counts, in order.
        features: What the histograms are of.
        sites: By name, those whose answer was taken.
        declined: By name, why a site is not in it.
        seconds: What it took.
        bytes: Of arrays that travelled for it.
    """

    check: str
    at: str
    job: str
    release: str | None
    contract: str
    since: str | None
    labels: Mapping[str, tuple[str, ...]]
    features: tuple[Feature, ...]
    sites: Mapping[str, SiteCheck]
    declined: Mapping[str, str]
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        value["features"] = [feature.model_dump(mode="json") for feature in self.features]
        value["sites"] = {name: _plain(dataclasses.asdict(site)) for name, site in sorted(self.sites.items())}
        return {"format": FORMAT, **_plain(value)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Check":
        """What ``to_json`` gave; raises ConfigurationError where it is something else."""
        if value.get("format") != FORMAT:
            raise ConfigurationError(f"check: expected {FORMAT}, got {value.get('format')!r}; was it written here?")
        try:
            fields = {field.name: _frozen(value[field.name]) for field in dataclasses.fields(cls)}
            fields["features"] = tuple(Feature.model_validate(feature) for feature in value["features"])
            fields["sites"] = {name: _site(site) for name, site in value["sites"].items()}
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"check: expected {FORMAT}, got a damaged one ({type(error).__name__})") from None


def _site(value: Mapping[str, Any]) -> SiteCheck:
    value = {"declines": (), **value}
    fields = {field.name: _frozen(value[field.name]) for field in dataclasses.fields(SiteCheck)}
    for name in ("reference", "recent"):
        window = value[name]
        fields[name] = Window(**{field.name: _frozen(window[field.name]) for field in dataclasses.fields(Window)})
    return SiteCheck(**fields)


def _plain(value: Any) -> Any:
    """Mappings in the order of their keys, and tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value
