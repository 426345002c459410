"""What the command's options ask for, as one value: a job, the demo, or a run that goes on.

Invariant: nothing is started and nothing is written here; every mistake that can be seen without TensorFlow is found.

Layout of an output folder::

    OUT/demo/        the built-in demo, where no job was given
    OUT/runs/RUN/    ``fedretrain.runfolder``; simulation.json and logs/
    OUT/registry/    releases; OUT/keys/ what signs them

Format ``fedretrain.simulation/1`` of simulation.json, which is what ``--resume`` needs beside the job::

    {"format", "engine": "local" | "flower", "poison": {site: kind}, "demo": {"seed", "sites", "permuted"} | null}
"""

import secrets
import shlex
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedretrain import atomic, words
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder, read_kept
from fedretrain.simsites import simulated_sites
from strategies.registry import check_job

from .demo import Recipe
from .digits import site_names

FORMAT = "fedretrain.simulation/1"
DEFAULT_OUT = Path("retrained")
DEMO_SITES = 5
REPLY_POISONS = ("scale", "nan")
"""Poisons of a site's replies, which the local engine adds; "labels" is in the demo's data."""
_SETTINGS = "simulation.json"


@dataclass(frozen=True)
class Options:
    """The command's options; None is what was not given."""

    job: Path | None = None
    sites: int | None = None
    rounds: int | None = None
    seed: int | None = None
    workers: int | None = None
    out: Path | None = None
    engine: str | None = None
    resume: str | None = None
    poison: str | None = None

    def only_for_a_run(self) -> bool:
        """Whether there is an option that means nothing where nothing runs."""
        return any(value is not None for name, value in vars(self).items() if name not in {"sites", "seed"})


@dataclass(frozen=True)
class Task:
    """What is to run.

    Attributes:
        out: The output folder, absolute.
        run_id: The run's name.
        sites: How many sites take part: the first ones by name.
        job: None until the demo is made.
        recipe: The demo's; None for a job of the user's.
        rounds: Takes the place of the job's, where given.
        engine: "local" or "flower".
        workers: Processes that serve the sites; None for the default.
        poison: Kind by name of a site whose replies are spoilt.
    """

    out: Path
    run_id: str
    sites: int
    job: Job | None = None
    recipe: Recipe | None = None
    rounds: int | None = None
    engine: str = "local"
    workers: int | None = None
    poison: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self.out / "runs" / self.run_id

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.root / _SETTINGS).exists()

    @property
    def resume_command(self) -> str:
        """What to type to go on with this run."""
        default = DEFAULT_OUT.resolve() / self.run_id == self.out
        return f"fedretrain simulate --resume {self.run_id}" + (
            "" if default else f" --out {shlex.quote(words.path(self.out))}"
        )

    def write_settings(self) -> None:
        """Keep for a later start what the job does not say; raises MachineError."""
        demo = asdict(self.recipe) if self.recipe else None
        settings = {"format": FORMAT, "engine": self.engine, "poison": self.poison, "demo": demo}
        atomic.write_json(self.root / _SETTINGS, settings)


def plan(options: Options) -> Task:
    """What the options ask for.

    Raises:
        ConfigurationError: An option, the job or its files are wrong, options exclude each other, or there is no such
            run to go on with.
    """
    if options.resume is not None:
        return _resumed(options, options.resume)
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    out = (options.out or DEFAULT_OUT / run_id).resolve()
    return _demo(options, out, run_id) if options.job is None else _of_job(options, options.job, out, run_id)


def overridden(job: Job, rounds: int | None, seed: int | None = None) -> Job:
    """The job with other rounds, or another seed, where they are given."""
    changes = {name: value for name, value in (("rounds", rounds), ("seed", seed)) if value is not None}
    return job.model_copy(update={"train": job.train.model_copy(update=changes)})


def check_quorum(job: Job, sites: int) -> None:
    """Raise ConfigurationError where a round needs more sites than take part."""
    if job.participation.min_sites > sites:
        raise ConfigurationError(
            f"participation.min_sites: expected at most {sites}, the sites that take part, "
            f"got {job.participation.min_sites}"
        )


def _of_job(options: Options, path: Path, out: Path, run_id: str) -> Task:
    if options.poison is not None:
        raise ConfigurationError("--poison: a rehearsal of the built-in demo; expected no JOB beside it")
    loaded = load_job(path)
    if loaded.train.stages and options.rounds not in {None, loaded.train.rounds}:
        raise ConfigurationError(f"--rounds: the job's stages have {loaded.train.rounds} rounds; change them instead")
    job = overridden(loaded, options.rounds, options.seed)
    check_job(job)
    count = len(simulated_sites(job))
    if options.sites is not None and options.sites > count:
        raise ConfigurationError(f"--sites: expected at most {count}, as many as the job has, got {options.sites}")
    check_quorum(job, options.sites or count)
    return Task(out, run_id, options.sites or count, job, engine=options.engine or "local", workers=options.workers)


def _demo(options: Options, out: Path, run_id: str) -> Task:
    reply_poison = options.poison if options.poison in REPLY_POISONS else None
    if options.engine == "flower" and reply_poison:
        raise ConfigurationError(
            f"--poison {reply_poison}: the local engine spoils replies; expected no --engine flower"
        )
    sites = options.sites or DEMO_SITES
    return Task(
        out,
        run_id,
        sites,
        recipe=Recipe.make(options.seed or 0, sites, permute_last=options.poison == "labels"),
        rounds=options.rounds,
        engine=options.engine or "local",
        workers=options.workers,
        poison={site_names(sites)[-1]: reply_poison} if reply_poison else {},
    )


def _resumed(options: Options, run_id: str) -> Task:
    for name in ("sites", "rounds", "seed", "poison"):
        if getattr(options, name) is not None:
            raise ConfigurationError(f"--resume goes on with the run as it was begun; expected no --{name} beside it")
    root = _find_run(run_id, options.out)
    settings = read_kept(root / _SETTINGS)
    job = RunFolder.open(root).load_job()
    if options.job is not None and not _same(load_job(options.job), job):
        raise ConfigurationError(f"--resume {run_id}: the run is not of the job in {options.job}; leave JOB out")
    recipe = Recipe(**settings["demo"]) if settings["demo"] else None
    return Task(
        root.parent.parent,
        root.name,
        recipe.sites if recipe else len(simulated_sites(job)),  # the demo's files may have to be made again
        job,
        recipe=recipe,
        engine=options.engine or settings["engine"],
        workers=options.workers,
        poison=settings["poison"],
    )


def _same(given: Job, begun: Job) -> bool:
    """Whether a run was begun with this job, whatever rounds and seed were given beside it."""
    return overridden(given, begun.train.rounds, begun.train.seed).digest == begun.digest


def _find_run(run_id: str, out: Path | None) -> Path:
    """The folder of a run that was begun: ``OUT/runs/RUN``, without OUT ``retrained/RUN/runs/RUN``."""
    base = (out or DEFAULT_OUT).resolve()
    found = base.glob(f"{'' if out else '*/'}runs/*/{_SETTINGS}")
    runs = {path.parent.name: path.parent for path in sorted(found)}
    if run_id not in runs:
        known = f"runs there: {', '.join(runs)}" if runs else "no run was begun there"
        raise ConfigurationError(f"--resume {run_id}: no such run below {base}; {known}")
    return runs[run_id]
