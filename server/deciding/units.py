"""What a retraining takes, unit by unit, in words for a person."""

from collections.abc import Callable, Mapping
from typing import Final

from fedretrain import words
from fedretrain.planning import Unit

Teller = Callable[[float], str]
"""Says a number to a person."""

NAMES: Final[Mapping[Unit, str]] = {
    "seconds": "time",
    "bytes": "sent",
    "site_seconds": "training at the sites",
    "kwh": "energy",
}


def teller(unit: Unit) -> Teller:
    """Says an amount of the unit."""
    if unit == "bytes":
        return words.size
    return (lambda value: f"{value:.4g} kWh") if unit == "kwh" else words.seconds
