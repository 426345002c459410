"""Opening the operator's own base model, without letting the file decide what is run.

``keras.saving.load_model`` is called on nothing. A ``.keras`` file gives its configuration, which is built through the
allow-list (``fedretrain.architecture``), and its weights, which Keras reads only once the HDF5 file was looked through.
Files without an architecture need a function of the operator's own that makes the model.

The base model is the same value however it was stored: canonical architecture, variables by position, random seeds 0.
"""

import collections
import dataclasses
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .allowlist import import_named
from .architecture import MAX_JSON_BYTES, build, canonical, set_weights, to_json, variable_paths, weights_of
from .errors import ConfigurationError, ModelRefused
from .hdf5 import check_hdf5, float_shapes
from .job import ModelSection
from .signature import output_names
from .tfcheckpoint import checkpoint_prefix, read_variables
from .variables import variable_specs

if TYPE_CHECKING:
    import keras

Arrays = list[NDArray[Any]]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_OPTIMIZER = frozenset({"optimizer", "optimizer_weights"})
_LAYERS = frozenset({"layers", "_layer_checkpoint_dependencies"})  # of Keras 3 and 3.0; Keras 2 counts layers itself
_SLACK_BYTES = 1_000_000
_DIFFERS = (  # .weights.h5, and files of Keras 2
    r"variable\.shape=\((?P<expected>[^)]*)\).*value\.shape=\((?P<got>[^)]*)\).*<Variable path=(?P<path>[^,]+),",
    r"for weight (?P<path>\S+)\. Weight expects shape \((?P<expected>[^)]*)\).* with shape \((?P<got>[^)]*)\)",
)
_MOST_COPIES = 8  # of the model in its file: its weights, and what an optimizer keeps for each of them


@dataclasses.dataclass(frozen=True, eq=False)
class BaseModel:
    """A model in use.

    Attributes:
        architecture: As ``architecture.to_json`` writes it, nothing frozen that the file does not freeze itself.
        weights: All variables by position; states of random seeds are 0.
        compile_config: What Keras stored of ``compile``, losses by output where there are several; None for a model
            that was not compiled or whose file does not say.
    """

    architecture: str
    weights: Arrays
    compile_config: dict[str, Any] | None


def load_base(section: ModelSection) -> BaseModel:
    """Open the model a job names.

    A ``.keras`` file has all that is needed; where the job names ``architecture`` as well, the file gives the weights
    alone. Weights files (``.weights.h5``, ``.h5``), SavedModel folders and TensorFlow checkpoints (a folder, an
    ``.index`` file, or its path without ``.index``) need it.

    Raises:
        ConfigurationError: The file is damaged or of another kind, the function is missing or makes no model, or
            weights and architecture do not belong together.
        ModelRefused: A layer outside the allow-list, or a file with content that must not be opened.
    """
    path = section.path
    with _named(path):
        config = _keras_config(path) if path.suffix == ".keras" else None
        if section.architecture is not None:
            model = _from_function(section.architecture, section.allow_modules)
        elif config is not None:
            model = build(canonical(config), section.allow_modules)
        else:
            raise ConfigurationError(
                "model.architecture: this file has no architecture that can be read; expected 'module:function', a "
                "function of yours that returns the uncompiled model"
            )
        _load_weights(model, path)
        compiled = _by_output(config["compile_config"], model) if config and config.get("compile_config") else None
        return BaseModel(to_json(model), _checked_weights(model), compiled)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file in front of our errors, so that one line says where and what."""
    try:
        yield
    except ConfigurationError as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None


def _keras_config(path: Path) -> dict[str, Any]:
    """The configuration in a ``.keras`` file, of which every member is checked before any is read."""
    with _archive(path) as archive:
        names = [info.filename for info in archive.infolist()]
        if any(name.startswith("assets/") for name in names):
            raise ModelRefused("holds assets, such as an adapted vocabulary; make these layers with their vocabulary")
        if sorted(names) != sorted([_CONFIG, _METADATA, _WEIGHTS]):
            raise ModelRefused(f"expected the members {_CONFIG}, {_METADATA} and {_WEIGHTS}, got {names[:10]}")
        for name, most in ((_CONFIG, MAX_JSON_BYTES), (_METADATA, _SLACK_BYTES)):
            if archive.getinfo(name).file_size > most:
                raise ModelRefused(f"{name}: expected at most {most} bytes, got {archive.getinfo(name).file_size}")
        try:
            config = json.loads(archive.read(_CONFIG))
        except (ValueError, RecursionError):
            config = None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{_CONFIG}: expected a JSON object")
    return config


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, zlib.error) as error:
        raise ConfigurationError(f"expected an undamaged .keras file, got one that cannot be read: {error}") from None


def _from_function(reference: str, allow_modules: tuple[str, ...]) -> "keras.Model":
    """The model the operator's function makes, built again so that it is known to travel."""
    import keras

    module, _, name = reference.partition(":")
    function: Callable[[], Any] | None = getattr(import_named(module, "model.architecture"), name, None)
    if not callable(function):
        raise ConfigurationError(f"model.architecture: expected a function '{name}' in the module '{module}', got none")
    try:
        with _fresh_names():
            model = function()
    except Exception as error:  # noqa: BLE001 - the operator's own function can raise anything
        raise ConfigurationError(f"model.architecture: '{reference}' raised {type(error).__name__}: {error}") from None
    if not isinstance(model, keras.Model):
        raise ConfigurationError(f"model.architecture: expected '{reference}' to return a model, got {type(model)}")
    return build(to_json(model), allow_modules)


@contextmanager
def _fresh_names() -> Iterator[None]:
    """Layers without names get the same ones every time, whatever this process made before."""
    from keras.src.backend.common import global_state

    before = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


def _load_weights(model: "keras.Model", path: Path) -> None:
    prefix = checkpoint_prefix(path)
    if path.suffix == ".keras":
        with _archive(path) as archive, tempfile.TemporaryDirectory() as folder:
            if archive.getinfo(_WEIGHTS).file_size > _MOST_COPIES * (_model_bytes(model) + _SLACK_BYTES):
                raise ModelRefused(
                    f"{_WEIGHTS}: is far larger than the architecture's weights and an optimizer's state"
                )
            file = Path(folder) / _WEIGHTS
            with archive.open(_WEIGHTS) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target)
            _load_hdf5(model, file, _WEIGHTS)
    elif prefix is not None:
        _load_checkpoint(model, prefix)
    elif path.suffix in (".h5", ".hdf5") and path.is_file():
        _load_hdf5(model, path, path.name)
    else:
        raise ConfigurationError(
            "model.path: expected a .keras file, a weights file (.weights.h5, .h5), a SavedModel folder or a "
            "TensorFlow checkpoint (a folder, its .index file, or that path without .index)"
        )


def _load_hdf5(model: "keras.Model", file: Path, name: str) -> None:
    check_hdf5(file, name, _model_bytes(model) + _SLACK_BYTES, skip=_OPTIMIZER)
    try:
        model.load_weights(file)
    except Exception as error:  # noqa: BLE001 - weights of another architecture make Keras raise nearly anything
        raise ConfigurationError(f"{name}: {_first_difference(str(error), model, file)}") from None
    _check_all_taken(model, file, name)


def _check_all_taken(model: "keras.Model", file: Path, name: str) -> None:
    """Refuse a file with weights that the model has no place for; Keras passes over them.

    Names alone do not tell, since they differ by Keras' version: first there must be more arrays of a shape.
    """
    saved = float_shapes(file, _LAYERS)
    own = collections.Counter(tuple(v.shape) for v in model.variables if "float" in v.dtype)
    if not collections.Counter(saved.values()) - own:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.weights.h5"
        model.save_weights(path)
        known = float_shapes(path, _LAYERS)
    if left := [where for where in saved if where not in known]:
        raise ConfigurationError(
            f"{name}: expected weights of the architecture's layers alone, got more; the first that it lacks is "
            f"'{left[0]}' {list(saved[left[0]])}"
        )


def _first_difference(text: str, model: "keras.Model", file: Path) -> str:
    """What differs in weights that do not fit, from what Keras says, which quotes numbers, or from all shapes."""
    for pattern in _DIFFERS:
        if found := re.search(pattern, text, re.DOTALL):
            expected, got = ([int(n) for n in re.findall(r"\d+", found[shape])] for shape in ("expected", "got"))
            return (
                f"the first variable that differs is '{found['path']}': expected {expected} as in the architecture, "
                f"got {got}"
            )
    saved = float_shapes(file, skip=_OPTIMIZER)
    own = {v.path: tuple(v.shape) for v in model.variables if "float" in v.dtype}
    for what, some, others in (("file", own, saved), ("architecture", saved, own)):
        if lacking := _first_without(some, others):
            return (
                f"expected {len(own)} variables as in the architecture, got {len(saved)}; the first that the {what} "
                f"has none like is '{lacking}' {list(some[lacking])}"
            )
    lines = [line for line in text.splitlines() if line.strip()]
    return f"weights and architecture differ: {' '.join(lines[:2])[:400]}"


def _first_without(some: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first of some arrays for which the others have no array of its shape left; names differ by Keras' version."""
    left = collections.Counter(others.values())
    for name, shape in some.items():
        if not left[shape]:
            return name
        left[shape] -= 1
    return None


def _load_checkpoint(model: "keras.Model", prefix: Path) -> None:
    weights, specs = weights_of(model), variable_specs(model)
    wanted = {i: (path, specs[i]) for i, path in enumerate(variable_paths(model)) if specs[i].rule != "local"}
    for i, array in zip(wanted, read_variables(prefix, list(wanted.values())), strict=True):
        weights[i] = array
    set_weights(model, weights)


def _model_bytes(model: "keras.Model") -> int:
    return sum(spec.nbytes for spec in variable_specs(model))


def _checked_weights(model: "keras.Model") -> Arrays:
    """All variables by position. Seeds are 0: some files do not store them, and Keras then draws new ones each time."""
    weights = []
    for variable, spec, array in zip(model.variables, variable_specs(model), weights_of(model), strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConfigurationError(f"variable '{variable.path}': expected finite weights, got NaN or infinity")
        weights.append(np.zeros_like(array) if spec.rule == "local" else array)
    return weights


def _by_output(config: dict[str, Any], model: "keras.Model") -> dict[str, Any]:
    """The compile configuration with a list of losses turned into losses by output."""
    loss = config.get("loss")
    return config | {"loss": dict(zip(output_names(model), loss, strict=False))} if isinstance(loss, list) else config
