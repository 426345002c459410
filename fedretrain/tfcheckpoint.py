"""Variables of a SavedModel or a TensorFlow checkpoint for a model whose architecture comes from elsewhere.

Only the checkpoint is read; no graph or function of a SavedModel is loaded. Variables are matched

- by position, where the file lists the model's variables (``model.export``, SavedModels of Keras 2), or else
- by name, with or without the model's own name in front (``tf.train.Checkpoint``, ``tf.saved_model.save``).

States of random seeds are not looked for.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigurationError

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SEED = "seed_generator_state"


def checkpoint_prefix(path: Path) -> Path | None:
    """What TensorFlow calls a checkpoint's path, for a SavedModel folder, a checkpoint folder or an ``.index`` file."""
    if path.suffix == ".index":
        return path.with_suffix("")
    if (path / "variables" / "variables.index").is_file():
        return path / "variables" / "variables"
    if (path / "checkpoint").is_file():
        import tensorflow as tf

        latest = tf.train.latest_checkpoint(str(path))
        return Path(latest) if latest else None
    return None


def read_variables(prefix: Path, wanted: Sequence[Any]) -> list[NDArray[Any]]:
    """Values for Keras variables.

    Args:
        prefix: As ``checkpoint_prefix`` returns it.
        wanted: Keras variables in the model's order, without seed states.

    Raises:
        ConfigurationError: It cannot be read, or the first variable that differs, with both shapes.
    """
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        listed, named = _saved(reader)
    except Exception as error:  # noqa: BLE001 - a damaged checkpoint makes TensorFlow raise nearly anything
        line = str(error).strip().split("\n")[0]
        raise ConfigurationError(f"{prefix}: expected an undamaged checkpoint of a model: {line}") from None
    keys = _by_position(listed, wanted) if listed else _by_name(named, wanted, prefix)
    arrays = []
    for variable, key in zip(wanted, keys, strict=True):
        expected = f"{variable.dtype} {list(variable.shape)}"
        array = np.asarray(reader.get_tensor(key)) if key in shapes else None
        got = "nothing" if array is None else f"{array.dtype.name} {list(array.shape)}"
        if array is None or got != expected:
            raise ConfigurationError(
                f"{prefix}: the first variable that differs is '{variable.path}': expected {expected} as in the "
                f"architecture, got {got}; give the architecture this file was saved from"
            )
        arrays.append(array)
    if listed and len(listed) > len(wanted):
        raise ConfigurationError(
            f"{prefix}: expected {len(wanted)} variables as in the architecture, got {len(listed)}; the first one too "
            f"many has the shape {shapes[listed[len(wanted)]]}"
        )
    return arrays


def _saved(reader: Any) -> tuple[list[str], dict[str, str]]:
    """Keys of the variables the root object lists as ``variables``, in order; keys of all variables by name."""
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    graph = TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH))

    def children(node: Any) -> dict[str, Any]:
        return {child.local_name: graph.nodes[child.node_id] for child in node.children}

    items = children(children(graph.nodes[0]).get("variables", TrackableObjectGraph.TrackableObject()))
    ordered = [items[name] for name in sorted(filter(str.isdigit, items), key=int)]
    listed = [a for node in ordered for a in node.attributes if not a.full_name.endswith(_SEED)]
    return [a.checkpoint_key for a in listed], {
        a.full_name: a.checkpoint_key for n in graph.nodes for a in n.attributes
    }


def _by_position(listed: list[str], wanted: Sequence[Any]) -> list[str]:
    return [*listed, *[""] * len(wanted)][: len(wanted)]


def _by_name(named: dict[str, str], wanted: Sequence[Any], prefix: Path) -> list[str]:
    inner: dict[str, set[str]] = {}
    for name, key in named.items():
        inner.setdefault(name.partition("/")[2], set()).add(key)
    known = {name: next(iter(found)) for name, found in inner.items() if len(found) == 1} | named
    keys = []
    for variable in wanted:
        key = known.get(variable.path) or known.get(variable.path.partition("/")[2])
        if key is None:
            near = difflib.get_close_matches(variable.path, named, n=1, cutoff=0.0)
            raise ConfigurationError(
                f"{prefix}: expected a variable '{variable.path}' of shape {list(variable.shape)}, got none of this "
                f"name; the nearest is '{near[0] if near else ''}'; name the layers as they were when saved"
            )
        keys.append(key)
    return keys
