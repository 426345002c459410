"""The head of a model, read off its file: the last Dense layer, and activation layers behind it.

Invariant: nothing of the model is built; its .keras file is a zip whose ``config.json`` has the architecture.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, Final

from fedretrain import atomic
from fedretrain.errors import ConfigurationError

_ACTIVATIONS: Final = frozenset({"Activation", "Softmax"})
_ADVICE: Final = "leave 'transfer' out of plan.actions, and name the labels in contract.labels"

Tables = dict[str, Any]


def units(path: Path) -> int:
    """How many units the head of the model in a file has; raises ConfigurationError as ``base_layers``."""
    return int(_layers(path)[-1]["config"]["units"])


def base_layers(path: Path) -> list[str]:
    """Names of the layers before the head of the model in a file, without inputs.

    Raises:
        ConfigurationError: It is no .keras file, the model does not end in a Dense layer, or it is nothing else.
        MachineError: The file cannot be read.
    """
    before = [layer["config"]["name"] for layer in _layers(path)[:-1] if layer["class_name"] != "InputLayer"]
    if not before:
        raise ConfigurationError(f"{path}: expected layers before the model's last one, got none; {_ADVICE}")
    return before


def _layers(path: Path) -> list[Tables]:
    """Up to the head's Dense layer."""
    layers = [layer for layer in _architecture(path).get("config", {}).get("layers", []) if isinstance(layer, dict)]
    while layers and layers[-1]["class_name"] in _ACTIVATIONS:
        layers.pop()
    if not layers or layers[-1]["class_name"] != "Dense":
        found = layers[-1]["class_name"] if layers else "nothing"
        raise ConfigurationError(f"{path}: expected a model that ends in a Dense layer, got {found}; {_ADVICE}")
    return layers


def _architecture(path: Path) -> Tables:
    """As Keras configures it."""
    value = None
    with atomic.disk_errors(path, "read"):
        try:
            with zipfile.ZipFile(path) as file:
                value = json.loads(file.read("config.json"))
        except (zipfile.BadZipFile, KeyError, ValueError, IsADirectoryError):
            pass
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: expected a .keras file to see the model's head in, got another; {_ADVICE}")
    return value
