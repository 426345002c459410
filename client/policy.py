"""What a site lets be done with its data: rules over a request, each with one name, most asked before data are read.

Invariants: nothing here reads, stores or sends anything; a rule that is not given allows what it is about; a refusal
names the rule and its limit, never a count or a value of the site's data.

The job of a request is known to a policy by its run's id, its strategy, how much it trains and which layers; what a
person approves is the whole of it, by digest (``client.approvals``).
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.messages import PrepareRequest
from fedretrain.planning import MODES
from fedretrain.tomlfile import Section, shaped

from .sampling import MIN_COUNT

Patterns = tuple[str, ...]
_TIME = r"([01]\d|2[0-3]):[0-5]\d"
_HOURS = re.compile(rf"{_TIME}-({_TIME}|24:00)")
_FLAWS = ("missing", "impossible", "duplicates", "label-noise")
Flaw = Annotated[str, shaped("|".join(_FLAWS), f"one of {', '.join(_FLAWS)}")]
Sha256 = Annotated[str, shaped(r"[0-9a-f]{64}", "a SHA-256: 64 digits from 0 to 9 and a to f")]


class ReplayRules(Section):
    """The ``[policy.replay]`` of ``site.toml``."""

    examples: int = Field(0, ge=0, le=10_000_000, description="most examples kept for later runs; 0: none")
    days: float | None = Field(None, gt=0, description="age in days up to which an example is kept")
    max_mb: int = Field(64, ge=1, le=1024, description="MiB that the kept examples may take")
    sample: Literal["reservoir", "balanced"] = Field("reservoir", description="which: any, or as many of each label")


class NoiseRules(Section):
    """The ``[policy.noise]`` of ``site.toml``."""

    epsilon: float | None = Field(
        None, ge=0.001, le=100, description="of the discrete Laplace noise on each count of a check; none by default"
    )


class QualityRules(Section):
    """The ``[policy.quality]`` of ``site.toml``."""

    leave_out: tuple[Flaw, ...] = Field(
        (), description="examples that are not trained on; without it data with missing values are refused"
    )


class Policy(Section):
    """The ``[policy]`` of ``site.toml``. Patterns are shell patterns, any of which has to fit."""

    federations: Patterns = Field(("*",), description="patterns over the federation's name")
    jobs: Patterns = Field(("*",), description="patterns over the run's id")
    strategies: Patterns = Field(("*",), description="patterns over the strategy's name")
    modes: Patterns = Field(("*",), description="patterns over the way to retrain, such as incremental")
    objectives: Patterns = Field(("*",), description="patterns over objectives beside the strategy, such as ewc")
    layers: Patterns = Field(("*",), description="patterns over layers that may be trained; nested as outer/inner")
    max_rounds: int | None = Field(None, ge=1, description="rounds of a job")
    max_local_epochs: int | None = Field(None, ge=1, description="passes over the site's data in a round")
    max_local_steps: int | None = Field(None, ge=1, description="optimizer steps in a round")
    max_seconds: float | None = Field(None, gt=0, description="seconds of training in a round")
    hours: Patterns = Field((), description="when data may be used, local time; empty: always")
    min_examples: int = Field(10, ge=1, description="fewest examples about which anything is sent")
    min_count: int = Field(MIN_COUNT, ge=MIN_COUNT, description="fewest examples a statistic may be about")
    statistics: Patterns = Field(("*",), description="patterns over statistics that may leave, such as val-*")
    approval: bool = Field(False, description="whether a person must say yes to each job that is not known yet")
    bundles: tuple[Sha256, ...] = Field((), description="app bundles accepted beside the kit's")
    replay: ReplayRules = ReplayRules()
    noise: NoiseRules = NoiseRules()
    quality: QualityRules = QualityRules()

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for hours in value:
            if not _HOURS.fullmatch(hours):
                raise ValueError(f'expected times such as "22:00-06:00", got {hours!r}')
        return value


def check_prepare(policy: Policy, federation: str, request: PrepareRequest, now: datetime) -> None:
    """Whether the site takes part in this job, asked at local time ``now``; before any data are read.

    Raises:
        DeclinedRequest: ``policy``, naming the rule.
    """
    train = request.train
    _fits(policy.federations, federation, "federations")
    _fits(policy.jobs, request.run, "jobs")
    _fits(policy.strategies, request.strategy.name, "strategies")
    _check_mode(policy, train.mode)
    if "*" not in policy.objectives:
        for name in _objectives(request):
            _fits(policy.objectives, name, "objectives")
    _at_most(train.rounds, policy.max_rounds, "max_rounds")
    if train.local_steps is None:
        _at_most(train.local_epochs or 1, policy.max_local_epochs, "max_local_epochs")
    else:
        _at_most(train.local_steps, policy.max_local_steps, "max_local_steps")
    _check_hours(policy, now)


def declined_modes(policy: Policy) -> tuple[str, ...]:
    """Of the modes that a plan's run may have, those that ``check_prepare`` declines whatever else the job is."""

    def declined(mode: str) -> bool:
        try:
            _check_mode(policy, mode)
        except DeclinedRequest:
            return True
        return False

    return tuple(mode for mode in MODES if declined(mode))


def check_train(policy: Policy, federation: str, request: PrepareRequest, round_: int, now: datetime) -> None:
    """Whether the site trains this round of a job it prepared; raises as ``check_prepare``, whose rules hold too."""
    check_prepare(policy, federation, request, now)
    _at_most(round_, policy.max_rounds, "max_rounds")


def check_watch(policy: Policy, federation: str, request: PrepareRequest, now: datetime) -> None:
    """Whether the site answers this check; what is about training alone is not asked. Raises as ``check_prepare``."""
    _fits(policy.federations, federation, "federations")
    _fits(policy.jobs, request.run, "jobs")
    _fits(policy.statistics, "sum-check", "statistics")
    _check_hours(policy, now)


def check_layers(policy: Policy, trained: Iterable[str]) -> None:
    """Whether these layers may be trained, by path (outer/inner); a pattern allows all that is inside what it fits.

    Raises:
        DeclinedRequest: ``policy``, naming the rule.
    """
    for path in trained:
        parts = path.split("/")
        if not any(_covers(pattern.split("/"), parts) for pattern in policy.layers):
            raise _refused("layers", f"only {', '.join(policy.layers)} to be trained")


def check_examples(policy: Policy, request: PrepareRequest, count: int) -> None:
    """Whether a site with ``count`` training examples takes part, once they are read and before they are used.

    Raises:
        DeclinedRequest: ``policy``, naming the rule.
    """
    least = max(policy.min_examples, policy.min_count)
    if count < least:
        raise _refused("min_examples", f"at least {least} examples to train on")
    if request.train.local_steps is not None and policy.max_local_epochs is not None:
        used = request.train.local_steps * min(request.train.batch_size, count)
        if used > policy.max_local_epochs * count:
            raise _refused("max_local_epochs", f"at most {policy.max_local_epochs}; take fewer local_steps")


def enough_for_check(policy: Policy, count: int) -> None:
    """Raises DeclinedRequest ``policy`` where ``count`` examples are too few for anything to be sent about them."""
    least = max(policy.min_examples, policy.min_count)
    if count < least:
        raise _refused("min_examples", f"at least {least} complete examples")


def check_sum(policy: Policy, name: str, count: int | None = None) -> None:
    """Whether a sum (``fedretrain.sums``) may leave, as the statistic "sum-NAME"; ``count``: about so many examples.

    Raises:
        DeclinedRequest: ``policy``, naming the rule.
    """
    _fits(policy.statistics, f"sum-{name}", "statistics")
    if count is not None and count < policy.min_count:
        raise _refused("min_count", f"at least {policy.min_count} examples for a statistic")


def statistics_to_tell(policy: Policy, metrics: Mapping[str, float], train: int, validation: int) -> dict[str, float]:
    """The statistics among ``metrics`` that may leave; ``val-...`` are about ``validation`` examples, others ``train``.

    ``seconds`` is about no example.
    """

    def enough(name: str) -> bool:
        return name == "seconds" or (validation if name.startswith("val-") else train) >= policy.min_count

    return {name: value for name, value in metrics.items() if enough(name) and _any_fits(policy.statistics, name)}


def may_leave(policy: Policy, name: str) -> bool:
    """Whether the statistic of this name fits the policy's patterns, such as "check-labels"."""
    return _any_fits(policy.statistics, name)


def count_to_tell(policy: Policy, count: int) -> int:
    """A count as it may leave: 0 where it is smaller than the smallest."""
    return count if count >= policy.min_count else 0


def bundle_accepted(policy: Policy, pinned: str, bundle: str) -> bool:
    """Whether tasks of the app bundle with this SHA-256 are passed on; ``pinned`` is the kit's."""
    return bundle == pinned or bundle in policy.bundles


def describe(policy: Policy) -> list[str]:
    """The policy in plain words, a sentence per rule."""
    least = max(policy.min_examples, policy.min_count)
    hours = f"from {' and '.join(policy.hours)}, local time" if policy.hours else "at any hour"
    more = f" and {len(policy.bundles)} more" if policy.bundles else ""
    who = "A person here must approve" if policy.approval else "No person has to approve"
    say = [
        _listed("Takes part in {}.", policy.federations, "the federation whose kit was joined", "federations named {}"),
        _listed("Trains for {}.", policy.jobs, "any run", "runs named {}"),
        _listed("Allows {}.", policy.strategies, "any strategy", "the strategies {}"),
        _listed("Retrains in {}.", policy.modes, "any mode", "the modes {}"),
        _listed("Allows {} beside a strategy.", policy.objectives, "any objective", "the objectives {}"),
        _listed("Lets {} be trained.", policy.layers, "any layer", "the layers {}"),
        _limited("A job may have {}.", policy.max_rounds, "rounds"),
        _limited("In a round it may pass over the data {}.", policy.max_local_epochs, "times"),
        _limited("In a round it may take {}.", policy.max_local_steps, "training steps"),
        _limited("In a round it may train for {}.", policy.max_seconds, "seconds; longer training is thrown away"),
        f"Uses data {hours}.",
        f"Sends nothing where there are fewer than {least} training examples.",
        f"Sends no statistic and no count about fewer than {policy.min_count} examples.",
        _listed("Sends {}, beside the number of examples.", policy.statistics, "any statistic", "the statistics {}"),
        *_checked(policy),
        _kept(policy.replay),
        f"{who} each job before its first use of data (fedretrain client approve).",
        f"Passes on tasks of the kit's app bundle{more}; no code of any bundle is run.",
    ]
    return [sentence for sentence in say if sentence]


def _objectives(request: PrepareRequest) -> list[str]:
    """Names of the objectives that a job has beside its strategy."""
    from strategies.composition import objective_configs

    try:
        return [objective.name for objective in objective_configs(request.strategy)]
    except ConfigurationError:
        raise DeclinedRequest("request-invalid", "strategy", "a list of objectives") from None


def _checked(policy: Policy) -> list[str]:
    """What of a check leaves, and what training leaves out."""
    from fedretrain.checks import SECTIONS

    sections = [name for name in SECTIONS if may_leave(policy, f"check-{name}")]
    modes = ""
    if not may_leave(policy, "sum-check") or not sections:
        told = "Answers no check of data and model."
    else:
        which = "any part" if len(sections) == len(SECTIONS) else ", ".join(sections)
        told = f"Answers checks of data and model with counts: {which}."
        modes = "Tells with such an answer which modes are not allowed here."
    noise = "Adds no noise to the counts of a check."
    if policy.noise.epsilon is not None:
        noise = f"Adds discrete Laplace noise to each count of a check, epsilon {policy.noise.epsilon:g} for a count."
    left = " and ".join(policy.quality.leave_out) or "nothing"
    return [told, modes, noise, f"Leaves out of training, for its quality: {left}."]


def _kept(rules: ReplayRules) -> str:
    if not rules.examples:
        return "Keeps no example for later runs."
    age = f" and not older than {rules.days:g} days" if rules.days is not None else ""
    which = "as many of each label as of any other" if rules.sample == "balanced" else "any as likely as another"
    return (
        f"Keeps a sample of what runs can train on for later runs, encrypted: at most {rules.examples} examples, "
        f"{rules.max_mb} MiB{age}, {which}."
    )


def _check_mode(policy: Policy, mode: str) -> None:
    _fits(policy.modes, mode, "modes")
    if mode == "replay" and not policy.replay.examples:
        raise _refused("replay", "another mode; this site keeps no examples for later runs")


def _check_hours(policy: Policy, now: datetime) -> None:
    if policy.hours and not any(_within(hours, now) for hours in policy.hours):
        raise _refused("hours", ", ".join(policy.hours) + ", the site's time")


def _fits(patterns: Patterns, name: str, rule: str) -> None:
    if not _any_fits(patterns, name):
        raise _refused(rule, f"one that fits {', '.join(patterns) or 'nothing'}")


def _any_fits(patterns: Patterns, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _covers(pattern: list[str], path: list[str]) -> bool:
    return len(pattern) <= len(path) and all(map(fnmatchcase, path, pattern))


def _at_most(value: int, limit: int | None, rule: str) -> None:
    if limit is not None and value > limit:
        raise _refused(rule, f"at most {limit}")


def _within(hours: str, now: datetime) -> bool:
    """From the first time on until before the second, over midnight where that is the earlier one."""
    start, end = hours.split("-")
    time = f"{now:%H:%M}"
    return start <= time < end if start < end else time >= start or time < end


def _refused(rule: str, expected: str) -> DeclinedRequest:
    return DeclinedRequest("policy", rule, expected)


def _listed(sentence: str, patterns: Patterns, any_: str, some: str) -> str:
    return sentence.format(any_ if "*" in patterns else some.format(", ".join(patterns) or "(none)"))


def _limited(sentence: str, limit: float | None, unit: str) -> str:
    return "" if limit is None else sentence.format(f"at most {limit:g} {unit}")
