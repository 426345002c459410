"""The search for a job's settings: KerasTuner chooses points of the job's space, trials say what they are worth.

Invariants:

- A trial is judged by the sites' validation parts alone (``server.trial``); the release holdouts stay unused, so a
  search makes no later gate less strict.
- Every trial has the job's seed, so that all have the same validation parts and the same order of examples.
- The same job and trials give the same points: KerasTuner draws from the job's seed. What is finished stands in the
  folder, so a search that broke off is started again and goes on.
- There is no other method in KerasTuner's place where it is not installed.

Layout: ``OUT/search.json``, replaced after every trial, and a folder for each in ``OUT/runs``; in a federation's folder
``state/NAME.json`` and ``runs/NAME-001`` and so on, with a name that follows from job and space (``name_of``).
Format ``fedretrain.search/1``::

    {"format", "job": digest, "search": the job's table without trials,
     "trials": [{"trial", "values": {place: value}, and what ``server.trial`` found}], "best": its number | null}

T. O'Malley, E. Bursztein, J. Long, F. Chollet, H. Jin, L. Invernizzi and others: KerasTuner, 2019,
https://github.com/keras-team/keras-tuner; "bayesian" is its Gaussian process with an upper confidence bound.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from fedretrain import atomic
from fedretrain.digest import json_digest
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import Job
from fedretrain.runfolder import RunFolder
from fedretrain.searchspace import SearchSection, Vary, placed

from .trial import is_finished

FORMAT: Final = "fedretrain.search/1"

Record = dict[str, Any]
Try = Callable[[Job, RunFolder], Record]
"""Runs one trial's job in its folder; its record (``server.trial``)."""


@dataclass(frozen=True)
class Place:
    """Where a search lies: ``file`` takes its record, ``out`` the folders of its trials, which are called ``trial``."""

    file: Path
    out: Path
    trial: str = "trial"

    @classmethod
    def of_simulation(cls, out: Path) -> "Place":
        """A folder that has nothing but this search."""
        return cls(out / "search.json", out)

    @classmethod
    def of_federation(cls, folder: Path, job: Job) -> "Place":
        """Beside the runs of a federation."""
        name = name_of(job)
        return cls(folder / "state" / f"{name}.json", folder, name)


def name_of(job: Job) -> str:
    """A name that no other search has; raises ConfigurationError where the job has no [search]."""
    return f"search-{json_digest([job.digest, _space(section_of(job))])[:8]}"


def search(job: Job, place: Place, run_trial: Try, say: Callable[[str], None] = lambda _: None) -> Record:
    """Try points of the job's space until there are enough; the search's record, see the module docstring.

    Args:
        job: With a [search] table, and an optimizer where the space has one of its settings.
        place: Where the search lies.
        run_trial: Makes one trial.
        say: Is told what is tried; not of trials that an earlier start has finished.

    Raises:
        ConfigurationError: The job has no [search], a place is not in it or takes no such value, the folder holds
            another job's search, or KerasTuner is not installed.
        RunFailed: No trial came to a number.
        FedretrainError: As ``run_trial``.
    """
    section = section_of(job)
    _check_file(place.file, job)
    trials: list[Record] = []

    def measure(point: Mapping[str, int | float]) -> float:
        number, values = len(trials) + 1, values_of(section, point)
        part = trial_job(job, values)
        folder = RunFolder.create(place.out, f"{place.trial}-{number:03d}", part)
        if not is_finished(folder):
            say(f"trial {number} of {section.trials}{_so_far(section, trials)}: {told(values)}")
        record = run_trial(part, folder)
        trials.append({"trial": number, "values": values, **{k: v for k, v in record.items() if k != "format"}})
        atomic.write_json(place.file, _record(job, section, trials))
        if record["reason"]:
            raise RunFailed(record["reason"])
        if record[section.metric] is None:
            raise ConfigurationError('search.metric: expected "loss" for a model without labels, got "accuracy"')
        return float(record[section.metric])

    _tune(section, job.train.seed, measure)
    result = _record(job, section, trials)
    if result["best"] is None:
        raise RunFailed(f"search: none of {len(trials)} trials came to a number; the last one: {trials[-1]['reason']}")
    return result


def section_of(job: Job) -> SearchSection:
    """The job's [search]; raises ConfigurationError where there is none."""
    if job.search is None:
        raise ConfigurationError("search: expected a table [search] with a space, got none")
    return job.search


def trial_job(job: Job, values: Mapping[str, Any]) -> Job:
    """The job of a trial: other values in some places, the search's rounds, and no [search] and [monitor] of its own.

    Raises:
        ConfigurationError: A place that is not in the job, or a value that it does not take.
    """
    section = section_of(job)
    tables = placed(job.model_dump(mode="json", exclude={"search", "monitor"}), values)
    if section.rounds is not None:
        tables["train"]["rounds"] = section.rounds
    try:
        return Job.model_validate_json(json.dumps(tables))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"search.space: {told(values)}: {where}: {first['msg']}") from None


def values_of(section: SearchSection, point: Mapping[str, int | float]) -> dict[str, Any]:
    """The values by place that a point of the tuner's space stands for: a choice has its number there."""
    found = {}
    for place, vary in section.space.items():
        chosen = point[place]
        found[place] = vary.choose[int(chosen)] if vary.choose is not None else chosen
    return found


def told(values: Mapping[str, Any]) -> str:
    """Values for a person."""
    return ", ".join(f"{place} = {_shown(value)}" for place, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _check_file(path: Path, job: Job) -> None:
    """Raise ConfigurationError where the file is another search's."""
    if not path.exists():
        atomic.make_folder(path.parent)
        return
    try:
        with atomic.disk_errors(path, "read"):
            kept = json.loads(path.read_bytes())
    except ValueError:
        kept = {}
    if kept.get("format") != FORMAT or kept.get("job") != job.digest or kept.get("search") != _space(section_of(job)):
        raise ConfigurationError(f"{path}: expected the search of this job, got another; choose another --out")


def _space(section: SearchSection) -> Record:
    """What makes a search the same one; it may go on with more trials."""
    dump: Record = section.model_dump(mode="json", exclude={"trials"})
    return dump


def _so_far(section: SearchSection, trials: Sequence[Record]) -> str:
    """The best value up to a trial, for who watches."""
    best = _best(section, trials)
    return "" if best is None else f" (so far {section.metric} {best[section.metric]:.4g})"


def _best(section: SearchSection, trials: Sequence[Record]) -> Record | None:
    """The trial with the least loss or the greatest accuracy, the first of equals."""
    known = [trial for trial in trials if trial[section.metric] is not None]
    sign = -1.0 if section.metric == "accuracy" else 1.0
    return min(known, key=lambda trial: (sign * trial[section.metric], trial["trial"]), default=None)


def _record(job: Job, section: SearchSection, trials: Sequence[Record]) -> Record:
    best = _best(section, trials)
    return {
        "format": FORMAT,
        "job": job.digest,
        "search": _space(section),
        "trials": list(trials),
        "best": best and best["trial"],
    }


def _tune(section: SearchSection, seed: int, measure: Callable[[Mapping[str, int | float]], float]) -> None:
    """Have KerasTuner choose points for ``measure``, which raises RunFailed where a point has no value."""
    import keras_tuner

    kind = keras_tuner.BayesianOptimization if section.method == "bayesian" else keras_tuner.RandomSearch

    class Tuner(kind):  # type: ignore[misc, valid-type]  # it ships no types
        """Runs a federated trial where KerasTuner would fit a model."""

        def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
            try:
                return {"value": measure(trial.hyperparameters.values)}
            except RunFailed as failed:
                raise keras_tuner.errors.FailedTrialError(str(failed)) from failed
            except Exception as error:
                raise keras_tuner.errors.FatalError(str(error)) from error  # anything else is swallowed

    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(
            objective=keras_tuner.Objective("value", "max" if section.metric == "accuracy" else "min"),
            max_trials=section.trials,
            seed=seed + 1,  # 0 would be a new one each time
            hyperparameters=_hyperparameters(keras_tuner, section.space),
            tune_new_entries=False,
            allow_new_entries=False,
            max_retries_per_trial=0,
            max_consecutive_failed_trials=section.trials + 1,  # all may fail
            directory=folder,
            project_name="search",
            overwrite=True,
        )
        try:
            tuner.search(verbose=0)
        except keras_tuner.errors.FatalError as fatal:
            raise fatal.__cause__ or fatal from None


def _hyperparameters(keras_tuner: Any, space: Mapping[str, Vary]) -> Any:
    """The space in KerasTuner's words."""
    found = keras_tuner.HyperParameters()
    for place, vary in space.items():
        sampling = "log" if vary.log else "linear"
        if vary.choose is not None:
            ordered = all(isinstance(value, int | float) for value in vary.choose)
            found.Choice(place, list(range(len(vary.choose))), ordered=ordered)
        elif isinstance(vary.low, int) and isinstance(vary.high, int):
            found.Int(place, vary.low, vary.high, sampling=sampling)
        else:
            found.Float(place, vary.low, vary.high, sampling=sampling)
    return found
