"""Reads the site's data and tries a step of training, in a process of its own: ``python -m client.doctor.trial``.

A process of its own, because data may be larger than memory and training may end a process in ways Python cannot
report. Prints a finding per line as JSON. Invariants: nothing is sent, nothing is stored, and no value of the data is
in a finding; what is tried is the job that was prepared last, or else a small model of our own on random numbers.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from client.home import Home
from client.sitefile import SiteFile, load_site, reader
from fedretrain.errors import DataMismatch, DeclinedRequest, FedretrainError

from .finding import Finding, problem

if TYPE_CHECKING:
    from client.trainer import Arrays
    from fedretrain.dataset import Dataset
    from fedretrain.job import NamedConfig
    from fedretrain.messages import PrepareRequest

_DEFAULT_BACKEND = "client.trainer:Trainer"
_EXAMPLES = 256  # the most a step is tried with


def findings(home: Home, *, step: bool) -> Iterator[Finding]:
    """What there is to say about data and training; raises ConfigurationError where ``site.toml`` is wrong."""
    site = load_site(home.site)
    job = last_job(home)
    if job is None:
        yield _data_without_job(home, site)
        yield from _imported(home, site)
        if step:
            yield _probe(site)
        return
    data, finding = read_data(home, site, job)
    yield finding
    yield from _metrics(home, site, job, data)
    yield from _refused(home, site, job, data, build=step)
    if step and data is not None:
        yield _step(home, site, job, data)


def last_job(home: Home) -> "PrepareRequest | None":
    """What the server asked to train last, None where it has not asked yet."""
    from pydantic import ValidationError

    from fedretrain.messages import PrepareRequest

    def age(file: Path) -> int:
        return file.stat().st_mtime_ns

    for file in sorted((home.store / "runs").glob("*.json"), key=age, reverse=True):
        try:
            job = PrepareRequest.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            continue
        if not job.check:
            return job
    return None


def read_data(home: Home, site: SiteFile, job: "PrepareRequest") -> "tuple[Dataset | None, Finding]":
    """The site's data as the job's contract names them, or None, and what there is to say about them."""
    from client.checker import training_data
    from client.store import SiteStore

    folder, name = SiteStore(home.store).checking, home.load_kit().site if home.kit.is_file() else ""
    said = _Said()
    logging.getLogger("client").addHandler(said)
    try:
        raw = reader(site, home.root)(job.contract)
        data, left = training_data(raw, job.contract, site.policy, folder, name)
    except DataMismatch as mismatch:
        return None, _mismatch(mismatch, job.run, home, said.lines)
    finally:
        logging.getLogger("client").removeHandler(said)
    what = f"{len(data)} examples, as the contract of run {job.run} asks"
    if left:
        what += "; left out by [policy.quality]: " + ", ".join(f"{count} for {why}" for why, count in left.items())
    return data, Finding("data", "ok", what)


def _metrics(home: Home, site: SiteFile, job: "PrepareRequest", data: "Dataset | None") -> Iterator[Finding]:
    """Whether each business metric gives a number; not which."""
    from client.checking.business import arrays_of
    from client.checking.business import reader as metrics_of

    if data is None:
        return
    arrays = partial(arrays_of, data, job.contract)
    for name, section in site.metrics.items():
        said = _Said()
        logging.getLogger("client").addHandler(said)
        number = metrics_of(site.metrics, home.root)([name], arrays)[name]
        logging.getLogger("client").removeHandler(said)
        if number is not None:
            yield Finding("metric", "ok", f"{name}: {section.function} gives a number of {section.unit}")
            continue
        yield problem(
            "metric",
            "metric-failed",
            f"{name}: {section.function} gives no finite number ({'; '.join(said.lines)})",
            "a check that asks for it goes without; nothing else depends on it",
            f"correct the function, or what [metrics.{name}] in {home.site} says",
        )


def _imported(home: Home, site: SiteFile) -> Iterator[Finding]:
    """Whether each business metric's function is there, before any job says under which names it gets arrays."""
    from client.data.function import function_of

    for name, section in site.metrics.items():
        try:
            wrong = "" if callable(function_of(section, home.root)) else "it is no function"
        except Exception as error:  # noqa: BLE001 - it is the site's own code, and its texts may quote data
            wrong = f"its import fails with {type(error).__name__}"
        if not wrong:
            what = f"{name}: {section.function} is there; whether it gives a number is known once a job was prepared"
            yield Finding("metric", "ok", what)
            continue
        yield problem(
            "metric",
            "metric-failed",
            f"{name}: {section.function} cannot be called: {wrong}",
            "a check that asks for it goes without; nothing else depends on it",
            f"correct the function, or what [metrics.{name}] in {home.site} says",
        )


def _refused(
    home: Home, site: SiteFile, job: "PrepareRequest", data: "Dataset | None", *, build: bool
) -> Iterator[Finding]:
    """What the policy would answer if the next round of the job began now; nothing where it allows it.

    The layers are looked at only where the model may be built, which takes TensorFlow.
    """
    from client import policy
    from client.layers import trained_layers

    if not home.kit.is_file():
        return
    kit = home.load_kit()
    try:
        policy.check_prepare(site.policy, kit.federation, job, datetime.now(UTC).astimezone())
        if build and "*" not in site.policy.layers:
            policy.check_layers(site.policy, trained_layers(job, site.trainer.allow_modules))
        if data is not None:
            policy.check_examples(site.policy, job, _examples(job, kit.site, data))
    except (DataMismatch, DeclinedRequest) as refusal:
        what = f"the next round of run {job.run} would be refused: {refusal.where}, expected {refusal.expected}"
        do = f"if that is not what you want, change [policy] in {home.site}; it counts from the next request on"
        yield Finding("policy", "note", what, "the run goes on without this site", do)


def _examples(job: "PrepareRequest", site: str, data: "Dataset") -> int:
    """How many of the site's own examples the job would train on; raises as ``client.selection.select``."""
    from client.selection import parted, select, selects

    return len(select(job, data, site).train if selects(job) else parted(data, job.train, site).mine)


class _Said(logging.Handler):
    """What is logged while data are read: where the site's own reader failed, without the text of its error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(" ".join(record.getMessage().split()))


def _mismatch(mismatch: DataMismatch, run: str, home: Home, said: list[str]) -> Finding:
    where = f" at {mismatch.where}" if mismatch.where else ""
    more = f" ({'; '.join(said)})" if said else ""
    return problem(
        "data",
        mismatch.code,
        f"{mismatch.code}{where}: expected {mismatch.expected}{more}",
        f"the data do not fit the model of run {run}, so this site declines to train it",
        f"correct the data, or how [data] in {home.site} reads them; if the data are right, tell the server's operator "
        "that the model expects something else",
    )


def _data_without_job(home: Home, site: SiteFile) -> Finding:
    """All that can be said before the server has asked for anything: whether the data are there."""
    named = getattr(site.data, "path", None)
    if not isinstance(named, str):
        return Finding(
            "data", "note", "no job has been prepared here yet, so what the data must look like is not known"
        )
    path = home.root / named
    if any(character in named for character in "*?["):
        there = next(iter(path.parent.glob(path.name)), None) is not None
    else:
        there = path.exists()
    if not there:
        return problem(
            "data",
            "data-unreadable",
            f"{path} does not exist",
            "the site has nothing to train on",
            f"say in [data] of {home.site} where the data lie; paths are from {home.root}",
        )
    return Finding("data", "ok", f"{path} is there; whether it fits is known once the server has prepared a job")


def _step(home: Home, site: SiteFile, job: "PrepareRequest", data: "Dataset") -> Finding:
    """A step of the last job on the site's own data."""
    import numpy as np

    from client.store import SiteStore

    base = SiteStore(home.store).base(job.contract.base)
    if base is None:
        return Finding("step", "skipped", f"the base model of run {job.run} has not arrived yet")
    some = data.take(np.arange(min(len(data), _EXAMPLES)))
    return _timed(site, job, base, some, f"of run {job.run}")


def _probe(site: SiteFile) -> Finding:
    """A step of a small model on random numbers, where nothing else is there to try."""
    if site.trainer.backend != _DEFAULT_BACKEND:
        return Finding("step", "skipped", "no job has been prepared here yet, so there is nothing to try")
    from .probe import probe

    job, base, data = probe()
    return _timed(site, job, base, data, "of a small model on random numbers, because no job has been prepared yet")


def _timed(site: SiteFile, job: "PrepareRequest", base: "Arrays", data: "Dataset", what: str) -> Finding:
    from client.trainer import Order
    from client.trainer_main import load_backend

    why = "what fails here fails when the server asks for training"
    one = {"local_steps": 1, "local_epochs": None, "validation_fraction": 0.0}
    plain = {"train": job.train.model_copy(update=one), "strategy": _alone(job)}
    order = Order(job.model_copy(update=plain), "check", 1, site.trainer.allow_modules)
    received = [base[position] for position in job.contract.changing]
    times = []
    try:
        trainer = load_backend(site.trainer.backend, site.trainer.threads)
        trainer.prepare(order.request, order.allow_modules)
        for _ in range(2):
            started = time.monotonic()
            trainer.train(order, lambda: base, received, data)
            times.append(time.monotonic() - started)
    except FedretrainError as error:
        cause = getattr(error, "code", "trainer-failure")
        return problem("step", cause, f"a step {what} failed: {error}", why, "do what the line above says")
    first, second = times
    return Finding("step", "ok", f"{second:.2f} s a step {what}; the first, with all it sets up, took {first:.1f} s")


def _alone(job: "PrepareRequest") -> "NamedConfig":
    """A strategy that needs nothing which comes with a round, for the same contract."""
    from fedretrain.job import NamedConfig
    from strategies.composition import own_settings

    if not job.contract.personal:
        return NamedConfig(name="fedavg")
    return NamedConfig(name=job.strategy.name, **own_settings(job.strategy))


def main() -> None:
    """The process: ``--home DIR``, and ``--no-step``."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    home = Home.at(Path(sys.argv[sys.argv.index("--home") + 1]))
    try:
        for finding in findings(home, step="--no-step" not in sys.argv):
            sys.stdout.write(json.dumps(finding.value()) + "\n")
            sys.stdout.flush()
    except FedretrainError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
