"""An architecture as canonical JSON: how a model travels, is signed and is built again.

The JSON is Keras' own serialization of the model object without what belongs to compiling. It has sorted keys and no
white space, and is the same for one model however often it is saved, loaded, compiled or built again, in any process;
layer names are kept. ``build`` trusts nothing in it: size, nesting and every class (``fedretrain.allowlist``) are
checked before Keras sees any of it, and the number of parameters before one of them is allocated.
"""

import difflib
import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .allowlist import check_tree
from .digest import sha256
from .errors import ConfigurationError, ModelRefused

if TYPE_CHECKING:
    import keras

Arrays = list[NDArray[Any]]

MAX_JSON_BYTES = 20_000_000
_NOT_ARCHITECTURE = ("compile_config", "shared_object_id")


def to_json(model: "keras.Model") -> str:
    """The architecture of a model as canonical JSON; weights and compilation are not in it.

    Raises:
        ModelRefused: A layer has no configuration it could be built from again, or one layer object stands in several
            nested models, which Keras' serialization does not keep.
    """
    import keras

    _check_no_sharing(model)
    try:
        return canonical(keras.saving.serialize_keras_object(model))
    except Exception as error:  # noqa: BLE001 - a layer's get_config may be the user's own code
        raise ModelRefused(f"model '{model.name}' cannot be written as an architecture: {_line(error)}") from None


def canonical(tree: Any) -> str:
    """Canonical JSON of a serialized Keras object, without what is no architecture."""
    # Infinity is written as Python and Keras write it; it occurs in attention masks.
    return json.dumps(_stripped(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(architecture: str) -> str:
    """SHA-256 of an architecture's JSON."""
    return sha256(architecture.encode())


def build(architecture: str, allow_modules: Sequence[str] = (), max_parameters: int | None = None) -> "keras.Model":
    """Build a model from an architecture that somebody else may have written.

    Args:
        architecture: What ``to_json`` returned.
        allow_modules: Modules of the receiver's own whose classes and functions may be used; imported here.
        max_parameters: Most numbers all variables together may have. They are counted before any is allocated.

    Returns:
        The model, uncompiled, with initial weights.

    Raises:
        ModelRefused: It is too large or too deep, holds a class outside the allow-list, or Keras cannot build it. One
            line that names the layer, its class and what to do.
        ConfigurationError: A module in ``allow_modules`` cannot be imported.
    """
    tree = _parsed(architecture)
    custom = check_tree(tree, allow_modules)
    if custom:  # the receiver's own layers may set variables to arrays, which cannot be put off
        model = _deserialized(tree, custom)
        _check_size(model, max_parameters)
        return model
    with _unallocated_variables():
        model = _deserialized(tree, custom)
        _check_size(model, max_parameters)
    return model


def weights_of(model: "keras.Model") -> Arrays:
    """Copies of all variables by position: ``model.variables``, in their own shapes and dtypes."""
    import keras

    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.variables]


def set_weights(model: "keras.Model", weights: Sequence[NDArray[Any]]) -> None:
    """Give all variables their values by position; nothing is changed unless everything fits.

    Raises:
        ModelRefused: Another number of arrays, or another shape or dtype at a position; expected and got.
    """
    variables = model.variables
    if len(weights) != len(variables):
        raise ModelRefused(f"weights: expected {len(variables)} arrays, got {len(weights)}")
    for position, (variable, array) in enumerate(zip(variables, weights, strict=True)):
        expected, got = (tuple(variable.shape), variable.dtype), (array.shape, array.dtype.name)
        if expected != got:
            raise ModelRefused(
                f"weights: position {position} ('{variable.path}'): expected shape {list(expected[0])} of "
                f"{expected[1]}, got {list(got[0])} of {got[1]}"
            )
    for variable, array in zip(variables, weights, strict=True):
        variable.assign(array)
    for layer in all_layers(model):
        if callable(getattr(layer, "finalize_state", None)):
            layer.finalize_state()  # Normalization computes with copies that it makes of its variables


def named_layers(model: "keras.Model") -> "list[tuple[str, keras.layers.Layer]]":
    """The layers that the architecture names, with their paths: "name", and "outer/name" inside models and wrappers.

    Parents stand before what they hold. Layers that a composite layer makes for itself have no names of their own.
    """
    import keras

    found: list[tuple[str, Any]] = []

    def visit(owner: Any, prefix: str) -> None:
        held = owner.layers if isinstance(owner, keras.Model) else [getattr(owner, "layer", None)]
        for layer in held:
            if isinstance(layer, keras.layers.Layer):
                found.append((prefix + layer.name, layer))
                if isinstance(layer, keras.Model | keras.layers.Wrapper):
                    visit(layer, f"{prefix}{layer.name}/")

    visit(model, "")
    return found


def matching_layers(model: "keras.Model", pattern: str, key: str) -> "list[tuple[str, keras.layers.Layer]]":
    """The layers of ``named_layers`` that a shell pattern fits, part by part of their paths.

    Raises:
        ConfigurationError: None does; ``key`` says where the pattern stands.
    """
    layers, wanted = named_layers(model), pattern.split("/")

    def fits(path: str) -> bool:
        parts = path.split("/")
        return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))

    found = [(path, layer) for path, layer in layers if fits(path)]
    if not found:
        near = difflib.get_close_matches(pattern, [path for path, _ in layers], n=1, cutoff=0.0)
        raise ConfigurationError(
            f"{key}: expected patterns that match layers, got '{pattern}', which matches none; "
            f"the nearest layer is '{near[0] if near else ''}', and nested ones are written outer/inner"
        )
    return found


def variable_paths(model: "keras.Model") -> list[str]:
    """Where each variable is, "outer/layer/kernel"; Keras' own paths depend on how a model was built."""
    paths = {}
    for path, layer in named_layers(model):  # parents first: the innermost layer's path stays
        for variable in layer.variables:
            tail = variable.path.rpartition(f"{layer.name}/")[2]
            paths[id(variable)] = f"{path}/{tail}"
    return [paths.get(id(variable), variable.path) for variable in model.variables]


def all_layers(model: "keras.Model") -> "list[keras.layers.Layer]":
    """The model and every layer in it, also those that composite layers made for themselves; parents first."""
    return list(model._flatten_layers())  # noqa: SLF001 - Keras' public `layers` is one level deep


def _check_no_sharing(model: "keras.Model") -> None:
    """Refuse a layer that two models hold: built again it would be two layers with weights of their own."""
    paths: dict[int, str] = {}
    for path, layer in named_layers(model):
        if paths.setdefault(id(layer), path) != path:
            raise ModelRefused(
                f"layer '{path}' is the same object as '{paths[id(layer)]}', which Keras does not store; share a layer "
                "within one model only"
            )


def _stripped(node: Any) -> Any:
    """The tree without what is no architecture, wherever an object is serialized."""
    if isinstance(node, dict):
        drop = _NOT_ARCHITECTURE if "class_name" in node else ()
        return {key: _stripped(value) for key, value in node.items() if key not in drop}
    return [_stripped(item) for item in node] if isinstance(node, list | tuple) else node


def _parsed(architecture: str) -> Any:
    if len(architecture) > MAX_JSON_BYTES:
        raise ModelRefused(f"architecture: expected at most {MAX_JSON_BYTES} bytes of JSON, got {len(architecture)}")
    try:
        return json.loads(architecture)
    except RecursionError:
        raise ModelRefused("architecture: nested too deeply to be read") from None
    except ValueError as error:
        raise ModelRefused(f"architecture: expected JSON: {_line(error)}") from None


def _deserialized(tree: Any, custom: dict[str, Any]) -> "keras.Model":
    import keras

    try:
        model = keras.saving.deserialize_keras_object(tree, custom_objects=custom, safe_mode=True)
    except Exception as error:  # noqa: BLE001 - a malformed configuration makes Keras raise nearly anything
        raise ModelRefused(f"architecture: Keras cannot build it: {_line(error)}") from None
    if not isinstance(model, keras.Model):
        raise ModelRefused(f"architecture: expected a model, got {type(model).__name__}")
    return model


def _check_size(model: "keras.Model", max_parameters: int | None) -> None:
    count = sum(math.prod(v.shape) for v in model.variables)
    if max_parameters is not None and count > max_parameters:
        raise ModelRefused(f"architecture: expected at most {max_parameters} parameters, got {count}")


@contextmanager
def _unallocated_variables() -> Iterator[None]:
    """Variables made inside have shapes only; they are allocated at the end, or never where an error ends it."""
    import keras
    from keras.src.backend.common import global_state
    from keras.src.backend.common.variables import initialize_all_variables

    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
        initialize_all_variables()
    finally:
        global_state.set_global_attribute("uninitialized_variables", [])


def _line(error: BaseException) -> str:
    """The first line of an error, short enough for one line of ours."""
    return str(error).strip().split("\n")[0][:300]
