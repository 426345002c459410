"""Variables of a SavedModel or a TensorFlow checkpoint for a model whose architecture comes from elsewhere.

Only the checkpoint is read; no graph or function of a SavedModel is loaded. Variables are matched

- by position, where the file lists the model's variables (``model.export``, SavedModels of Keras 2), or else
- by name, whatever stands in front of the layer's (``tf.train.Checkpoint``, ``tf.saved_model.save``).

States of random seeds are not looked for. By name, everything that the layers of the model in the file hold must be
taken; other models in the same checkpoint are left alone.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import VariableSpec
from .errors import ConfigurationError

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SEED = "seed_generator_state"
_LAYERS = re.compile(r"_?layers|_operations|layer(_with_weights)?-\d+")
_NO_LAYERS = re.compile(
    r"_?optimizer|save_counter|keras_api|\w*metrics\w*|_loss_tracker|_(in|out)bound_nodes|_compiled_\w+"
)
"""Names of what a model has: of its layers in the versions of Keras, and of what is none and leads to none."""


def checkpoint_prefix(path: Path) -> Path | None:
    """What TensorFlow calls a checkpoint's path, given as that, as its ``.index`` file or as a folder around it."""
    if path.suffix == ".index":
        return path.with_suffix("")
    if (path / "variables" / "variables.index").is_file():
        return path / "variables" / "variables"
    if (path / "checkpoint").is_file():
        import tensorflow as tf

        latest = tf.train.latest_checkpoint(str(path))
        return Path(latest) if latest else None
    return path if not path.exists() and path.with_name(f"{path.name}.index").is_file() else None


def read_variables(prefix: Path, wanted: Sequence[tuple[str, VariableSpec]]) -> list[NDArray[Any]]:
    """Values for a model's variables.

    Args:
        prefix: As ``checkpoint_prefix`` returns it.
        wanted: Path ("outer/layer/kernel") and specification of each variable in the model's order, without seeds.

    Raises:
        ConfigurationError: It cannot be read, or the first variable that differs, with both shapes.
    """
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        listed, named, models = _saved(reader)
    except Exception as error:  # noqa: BLE001 - a damaged checkpoint makes TensorFlow raise nearly anything
        line = str(error).strip().split("\n")[0]
        raise ConfigurationError(f"{prefix}: expected an undamaged checkpoint of a model: {line}") from None
    if listed and len(listed) != len(wanted):
        saved = reader.get_variable_to_shape_map()
        raise ConfigurationError(
            f"{prefix}: expected {len(wanted)} variables as in the architecture, got {len(listed)}; "
            f"{_first_difference([list(saved[key]) for key in listed], wanted)}"
        )
    keys = listed or [_by_name(named, path, prefix) for path, _ in wanted]
    if not listed:
        used = set(keys)
        _check_all_taken(reader, models, {name: key for name, key in named.items() if key in used}, prefix)
    return [_checked(reader.get_tensor(key), *one, prefix) for key, one in zip(keys, wanted, strict=True)]


def _first_difference(saved: Sequence[list[int]], wanted: Sequence[tuple[str, VariableSpec]]) -> str:
    """Where two lists of variables that differ in length do so first, in words."""
    pairs = zip(saved, wanted, strict=False)
    found = next(((got, path, spec) for got, (path, spec) in pairs if got != list(spec.shape)), None)
    if found is not None:
        got, path, spec = found
        return f"the first that differs is '{path}': expected {list(spec.shape)}, got {got}"
    if len(saved) < len(wanted):
        path, spec = wanted[len(saved)]
        return f"the first that is missing is '{path}' {list(spec.shape)}"
    return f"the first that is too many is {saved[len(wanted)]}"


def _checked(value: Any, path: str, spec: VariableSpec, prefix: Path) -> NDArray[Any]:
    array = np.asarray(value)
    if (array.shape, array.dtype.name) != (spec.shape, spec.dtype):
        raise ConfigurationError(
            f"{prefix}: the first variable that differs is '{path}': expected {spec.dtype} {list(spec.shape)} as in "
            f"the architecture, got {array.dtype.name} {list(array.shape)}"
        )
    return array


def _check_all_taken(reader: Any, models: list[dict[str, str]], taken: dict[str, str], prefix: Path) -> None:
    """Raise ConfigurationError where layers of a model that values are taken from hold others as well."""
    dtypes, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    for model in models:
        left = [n for n, key in model.items() if n not in taken and key in dtypes and dtypes[key].is_floating]
        if left and not set(taken.values()).isdisjoint(model.values()):
            raise ConfigurationError(
                f"{prefix}: expected variables of the architecture's layers alone, got more; the first that it lacks "
                f"is '{left[0]}' {list(shapes[model[left[0]]])}"
            )


def _saved(reader: Any) -> tuple[list[str], dict[str, str], list[dict[str, str]]]:
    """What is in a checkpoint.

    Returns:
        Keys of the variables the root object lists as ``variables``, in order; keys of all variables by name; keys by
        name of those that layers hold, for each model that is part of no other.
    """
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    graph = TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH))

    def children(node: Any) -> dict[str, Any]:
        return {child.local_name: graph.nodes[child.node_id] for child in node.children}

    items = children(children(graph.nodes[0]).get("variables", TrackableObjectGraph.TrackableObject()))
    ordered = [items[name] for name in sorted(filter(str.isdigit, items), key=int)]
    listed = [a for node in ordered for a in node.attributes if not a.full_name.endswith(_SEED)]
    return [a.checkpoint_key for a in listed], _keys(graph.nodes), [_keys(nodes) for nodes in _of_layers(graph)]


def _keys(nodes: Iterable[Any]) -> dict[str, str]:
    return {a.full_name: a.checkpoint_key for node in nodes for a in node.attributes}


def _of_layers(graph: Any) -> list[list[Any]]:
    """The nodes of the layers, and of what is in them, of each model that is part of no other."""
    found, seen, ahead = [], {0}, [0]
    while ahead:
        children = graph.nodes[ahead.pop(0)].children
        if layers := [child.node_id for child in children if _LAYERS.fullmatch(child.local_name)]:
            found.append([graph.nodes[number] for number in _reached(graph, layers)])
            continue
        new = [child.node_id for child in children if not _NO_LAYERS.fullmatch(child.local_name)]
        ahead += [number for number in dict.fromkeys(new) if number not in seen]
        seen.update(new)
    return found


def _reached(graph: Any, start: Iterable[int]) -> Iterable[int]:
    """Numbers of the nodes that one comes to from some, with these."""
    seen = dict.fromkeys(start)
    ahead = list(seen)
    while ahead:
        for child in graph.nodes[ahead.pop(0)].children:
            if child.node_id not in seen and not _NO_LAYERS.fullmatch(child.local_name):
                seen[child.node_id] = None
                ahead.append(child.node_id)
    return seen


def _by_name(named: dict[str, str], path: str, prefix: Path) -> str:
    """The key of the one variable whose name ends most like ``path``: in its layer's name and its own at least."""
    fits = {name: _common_suffix(name, path) for name in named}
    most = max(fits.values(), default=0)
    best = [name for name, n in fits.items() if n == most]
    if most < 2 or len(best) > 1:
        near = difflib.get_close_matches(path, named, n=1, cutoff=0.0)
        raise ConfigurationError(
            f"{prefix}: the first variable that differs is '{path}': expected one of this name, got "
            f"{'several' if most >= 2 else 'none'}, the nearest '{near[0] if near else ''}'; name the layers as they "
            "were when saved"
        )
    return named[best[0]]


def _common_suffix(a: str, b: str) -> int:
    pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
