"""How much electricity a run takes, where the extra ``energy`` (codecarbon) is installed; nothing where it is not.

Invariants:

- Nothing is asked of the network and nothing is written: codecarbon's offline tracker without an output, and without
  carbon intensities, which are of places and not of runs.
- A meter that fails measures nothing, and the run goes on.

The environment variable ``FEDRETRAIN_ENERGY=off`` has nothing measured: looking for what a machine can tell takes
codecarbon some seconds, once in a process.

What is measured is this machine, while the run goes on, whatever else it does meanwhile: in a simulation with all its
sites, in a federation the server alone. codecarbon reads the processor's own counters (RAPL) where it may, and
otherwise estimates from the processor's rated power and its load.

B. Courty, V. Schmidt, S. Luccioni, Goyal-Kamal, M. Coutarel and others: CodeCarbon, 2024,
https://doi.org/10.5281/zenodo.11171501.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, Final

PACKAGE: Final = "codecarbon"
INTERVAL_S: Final = 15.0
SWITCH: Final = "FEDRETRAIN_ENERGY"

Record = dict[str, Any]


class Meter:
    """Measures from when it is made.

    Args:
        tracker: codecarbon's, started; None measures nothing.
        version: codecarbon's.
    """

    def __init__(self, tracker: Any = None, version: str = "") -> None:
        self._tracker = tracker
        self._version = version

    def read(self) -> Record:
        """Ends the measurement: ``{"kwh", "of": "machine", "method"}``; empty where there is no number."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return {}
        with suppress(Exception):
            tracker.stop()
            kwh = float(tracker.final_emissions_data.energy_consumed)
            if 0 <= kwh < float("inf"):
                return {"kwh": kwh, "of": "machine", "method": f"{PACKAGE} {self._version}, offline"}
        return {}


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter for the block; it is stopped however the block ends."""
    wanted = os.environ.get(SWITCH) != "off" and importlib.util.find_spec(PACKAGE) is not None
    meter = _started() if wanted else Meter()
    try:
        yield meter
    finally:
        meter.read()


def _started() -> Meter:
    with suppress(Exception):
        import codecarbon

        logging.getLogger(PACKAGE).setLevel(logging.CRITICAL)  # it talks before it has read its own level
        installed = version(PACKAGE)
        tracker = codecarbon.OfflineEmissionsTracker(
            measure_power_secs=INTERVAL_S,
            tracking_mode="machine",
            output_methods=[],
            emissions_endpoint=None,
            force_carbon_intensity_g_co2e_kwh=0.0,
            allow_multiple_runs=True,
            log_level="critical",
        )
        tracker.start()
        return Meter(tracker, installed)
    return Meter()


def kwh_of(result: Mapping[str, Any]) -> float | None:
    """What a run's result (``server.run``) says it took, in kWh; None where it was not measured."""
    energy = result.get("energy") or {}
    kwh = energy.get("kwh")
    return None if kwh is None else float(kwh)
