"""The drifts by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fedretrain.errors import ConfigurationError
from simulations.digits import site_names

from .base import SITES, Scenario

ABOUT = {
    "appearance": "a camera takes the place of a scanner",
    "new-classes": "two digits are met that the model does not know",
    "meaning": "two digits exchange their names at one site",
    "label-shift": "half of the digits become rare",
}

_EXAMPLES = Path(__file__).parent.parent / "examples"
_FIRST_LINE = "# for: "


@dataclass(frozen=True)
class Drift:
    """One of them, for one seed.

    Raises:
        ConfigurationError: No drift has this name, or an impossible number of sites.
    """

    name: str
    seed: int = 0
    sites: int = SITES

    def __post_init__(self) -> None:
        if self.name not in ABOUT:
            raise ConfigurationError(f"SCENARIO: expected one of {', '.join(ABOUT)}, got {self.name!r}")
        site_names(self.sites)

    def make(self) -> Scenario:
        """Its data; raises ConfigurationError where scikit-learn is missing."""
        module = import_module(f"simulations.scenarios.{self.name.replace('-', '_')}")
        made: Callable[[int, list[str]], Scenario] = module.make
        return made(self.seed, site_names(self.sites))


def examples(drift: str | None = None) -> list[Path]:
    """The example jobs that mean something for a drift, or all, by name; a job's first line says for which."""
    return [job for job in sorted(_EXAMPLES.glob("*.toml")) if drift is None or drift in _scenarios(job)]


def _scenarios(job: Path) -> list[str]:
    first = job.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix(_FIRST_LINE).split(", ")
