"""What a check comes to: findings, each with the numbers behind it and one sentence, and how well the model does.

Frozen values without any judgement of their own; ``server.drift.analyse`` makes them from counts.

Format ``fedretrain.findings/1``::

    {"format", "check", "at",
     "findings": [{"kind", "subject", "site", "statistic", "threshold", "p", "effect", "n_reference", "n_recent",
                   "verdict", "text"}],                                  site null: all sites together
     "performance": [{"output", "site", "reference", "recent", "expected"}]}

with an estimate as {"value", "low", "high", "n"}. Every number is finite. Findings stand in order of kind (``KINDS``),
subject and site, pooled first.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedretrain.errors import ConfigurationError

FORMAT = "fedretrain.findings/1"

Kind = Literal["covariate", "label", "concept", "quality", "stream"]
Verdict = Literal["drift", "no drift", "too little data"]
KINDS: tuple[Kind, ...] = ("covariate", "label", "concept", "quality", "stream")


@dataclass(frozen=True)
class Finding:
    """One question that was asked of the counts, and its answer.

    Attributes:
        kind: What would have changed: the inputs, how frequent labels are, what inputs mean, the data's quality, or
            what a detector at a site said.
        subject: A feature, an output, or for quality "missing FEATURE" and the like.
        site: Where; None for all sites together.
        statistic: What is compared with ``threshold``, as the module of the kind defines it.
        threshold: Above it, and with ``p`` significant among all that were asked, it is drift.
        p: Probability of such counts where nothing changed; None where none can be given.
        effect: How much changed, on the kind's own scale: PSI for "covariate" and "label", a difference of accuracies
            for "concept" (positive: worse), a difference of shares for "quality" (positive: more).
        n_reference: Examples before, as far as they count.
        n_recent: Examples since, likewise.
        verdict: "too little data" also where suppression or noise leave no answer.
        text: One sentence for a person.
    """

    kind: Kind
    subject: str
    site: str | None
    statistic: float
    threshold: float
    p: float | None
    effect: float
    n_reference: int
    n_recent: int
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Estimate:
    """A share with its two-sided 95 % interval, from n examples."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Performance:
    """How often an output is right.

    Attributes:
        output: Its name.
        site: Where; None for all sites together.
        reference: Accuracy on labelled examples of the reference window; None without any that may be told.
        recent: Likewise since then.
        expected: Accuracy since then as the model's own confidence has it, without labels; None where unknown.
    """

    output: str
    site: str | None
    reference: Estimate | None
    recent: Estimate | None
    expected: float | None


@dataclass(frozen=True)
class Findings:
    """All that was found in one check."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    check: str
    at: str
    findings: tuple[Finding, ...]
    performance: tuple[Performance, ...]

    def drifted(self, kind: Kind) -> bool:
        """Whether anything of this kind drifted, at any site or in all together."""
        return any(f.kind == kind and f.verdict == "drift" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The findings in the module's format, made of lists, texts and numbers alone."""
        return {"format": FORMAT, **_ADAPTER.dump_python(self, mode="json")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Findings":
        """The findings that ``to_json`` made.

        Raises:
            ConfigurationError: It is of another format.
        """
        if value.get("format") != FORMAT:
            raise ConfigurationError(f"findings: expected format {FORMAT}, got {value.get('format')}")
        try:
            return _ADAPTER.validate_python({k: v for k, v in value.items() if k != "format"})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"findings: {where}: {first['msg']}") from error


_ADAPTER = TypeAdapter(Findings)
