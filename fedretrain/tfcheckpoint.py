"""Variables of a SavedModel or a TensorFlow checkpoint for a model whose architecture comes from elsewhere.

Only the checkpoint is read; no graph or function of a SavedModel is loaded. Variables are matched

- by position, where the file lists the model's variables (``model.export``, SavedModels of Keras 2), or else
- by name, whatever stands in front of the layer's (``tf.train.Checkpoint``, ``tf.saved_model.save``).

States of random seeds are not looked for.
"""

import difflib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import VariableSpec
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
        listed, named = _saved(reader)
    except Exception as error:  # noqa: BLE001 - a damaged checkpoint makes TensorFlow raise nearly anything
        line = str(error).strip().split("\n")[0]
        raise ConfigurationError(f"{prefix}: expected an undamaged checkpoint of a model: {line}") from None
    if listed and len(listed) != len(wanted):
        shapes = [list(reader.get_tensor(key).shape) for key in listed]
        expected = [list(spec.shape) for _, spec in wanted]
        first = next((i for i, (a, b) in enumerate(zip(expected, shapes, strict=False)) if a != b), None)
        where = (
            ""
            if first is None
            else f"; the first that differs is number {first}, {expected[first]} and {shapes[first]}"
        )
        raise ConfigurationError(
            f"{prefix}: expected {len(wanted)} variables as in the architecture, got {len(listed)}{where}"
        )
    keys = listed or [_by_name(named, path, prefix) for path, _ in wanted]
    return [_checked(reader.get_tensor(key), *one, prefix) for key, one in zip(keys, wanted, strict=True)]


def _checked(value: Any, path: str, spec: VariableSpec, prefix: Path) -> NDArray[Any]:
    array = np.asarray(value)
    if (array.shape, array.dtype.name) != (spec.shape, spec.dtype):
        raise ConfigurationError(
            f"{prefix}: the first variable that differs is '{path}': expected {spec.dtype} {list(spec.shape)} as in "
            f"the architecture, got {array.dtype.name} {list(array.shape)}"
        )
    return array


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
