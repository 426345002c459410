"""Names in a job's [watch] and [plan] that can be seen to be wrong before any site is asked; loads no TensorFlow."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, WatchSection
from fedretrain.planning import PlanSection

_OF_ANY_MODEL: Final = ("brightness", "contrast", "sharpness", "column 0")
_NUMBERED: Final = re.compile(r"(column|projection) (\d+)")


def check_names(job: Job, out: Path) -> None:
    """Refuse edges of what is never watched, and hours of sites that there are not.

    Whether the model in use has such a column or summary is known once it is loaded (``server.checking.edges``).

    Args:
        job: As it is meant at ``out``.
        out: The folder of runs and registry: a federation's, or a simulation's output.

    Raises:
        ConfigurationError: With the key, and the nearest name that there is.
        UntrustedRelease: The registry does not verify.
    """
    _check_edges(job, out)
    hours = (job.plan or PlanSection()).site_hours
    sites = _sites(job, out) if hours else []
    for name in hours if sites else ():
        if name not in sites:
            raise ConfigurationError(
                f"plan.site_hours: expected names of sites, such as {', '.join(sites[:3])}, got '{name}'"
                f"{_near(name, sites)}"
            )


def _check_edges(job: Job, out: Path) -> None:
    section = job.watch or WatchSection()
    unknown = [name for name in section.edges if not _watched(name, section, job.contract.columns or ())]
    if not unknown:
        return
    columns = _released_columns(out)
    for name in unknown:
        if not _watched(name, section, columns):
            own = job.contract.columns or columns
            known = [*own, *_OF_ANY_MODEL, *(f"projection {i}" for i in range(section.projections))]
            raise ConfigurationError(
                f"watch.edges: expected names of what is watched, such as {', '.join(known[: len(own) + 4])}, got "
                f"'{name}'{_near(name, known)}"
            )


def _watched(name: str, section: WatchSection, columns: Iterable[str]) -> bool:
    """Whether some model with these columns has a feature of this name (``fedretrain.features``)."""
    plain = name.rpartition(".")[2]  # with several inputs the input's name stands before it
    if name in columns or any(name.endswith(f".{column}") for column in columns) or plain in _OF_ANY_MODEL:
        return True
    numbered = _NUMBERED.fullmatch(plain)
    if numbered is None:
        return False
    return numbered[1] == "column" or int(numbered[2]) < section.projections


def _released_columns(out: Path) -> tuple[str, ...]:
    """Names of columns that the release in use has, where there is one."""
    from .registry import Registry

    release = Registry.open(out).incumbent()
    return () if release is None else tuple(name for spec in release.contract.inputs for name in spec.columns or ())


def _sites(job: Job, out: Path) -> list[str]:
    """The sites there are, or will be; none where nobody can say."""
    from .federation import Federation, is_federation

    if is_federation(out):
        federation = Federation.open(out)
        return sorted({*federation.active(), *federation.settings.sites})
    if job.simulation is None:
        return []
    from fedretrain.simsites import simulated_sites

    return sorted(simulated_sites(job))


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
