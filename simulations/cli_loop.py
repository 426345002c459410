"""``fedretrain simulate --scenario``: one world from its first month to its last, and the whole loop by itself in it.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; everything that was decided is kept.
"""

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.errors import ConfigurationError

if TYPE_CHECKING:
    from .loop.outcome import Course

STEPS = 12


@dataclass(frozen=True)
class Asked:
    """What the options ask for; None is what was not given."""

    scenario: str
    steps: int | None
    sites: int | None
    seed: int | None
    workers: int | None
    out: Path | None


def run_scenario(asked: Asked) -> tuple["Course", Path]:
    """Let the world pass under the planner; it, and the output folder.

    Raises:
        ConfigurationError: An unknown scenario, an impossible number, or a folder that exists.
        FedretrainError: As ``simulations.loop.worlds.Worlds.course``.
    """
    from .devices import default_workers
    from .loop.streams import SITES, Stream
    from .loop.watched import Watched
    from .loop.worlds import Kind, Worlds
    from .quiet import console_stream, diverted_stderr

    kind = Kind(asked.scenario, asked.steps or STEPS, asked.sites or SITES)
    Stream(kind.scenario, asked.seed or 0, kind.steps, kind.sites)  # refuses what cannot be, before anything is made
    out = (asked.out or Path("retrained") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}").resolve()
    if out.exists():
        raise ConfigurationError(f"--out: {out}: expected a folder that does not exist yet; choose another one")
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with (
        console_stream() as stream,
        diverted_stderr(out / "logs" / "server.log"),
        Watched(stream, kind.steps) as watched,
    ):
        workers = min(asked.workers or default_workers(kind.sites), kind.sites)
        with Worlds(out, workers, watched.say) as worlds:
            return worlds.course(kind, asked.seed or 0, "planner", out, watched.step), out


def as_json(course: "Course", out: Path) -> dict[str, Any]:
    """What was found, as the command's JSON object."""
    from .loop.summary import course_json

    return {**course_json(course), "out": str(out)}


def lines(course: "Course", out: Path) -> list[str]:
    """What was found, for a person; each step was told when it was over."""
    from .loop.planned import PLANS

    accuracy = f"accuracy {course.accuracy:.1%} over {len(course.records)} steps on what was current"
    spent = f"{course.nbytes / 1e6:.1f} MB, {course.seconds:.0f} seconds"
    done = f"retrained {course.retrainings} times, released {course.releases}"
    return [
        f"{course.scenario}, seed {course.seed}: {accuracy}; {done}, {spent}",
        f"plans, runs and releases: {out}; the plans as documents: {out / PLANS}",
    ]
