"""Several models as one Keras model: members side by side, and their outputs averaged by weights that add up to one.

``join`` makes it and ``split`` takes it apart again. The whole is an ordinary functional model of Keras' own layers,
with the members' inputs and outputs under their names and one contract, which any Keras opens::

    inputs -> member_1 ... member_k -> [n, *shape, k] -> member_weights, Dense(1, no bias) -> [n, *shape]

The weights are one variable [k, 1], which does not train. An output is averaged as the members give it: probabilities
for a softmax, logits where it has logits.

Invariants: members have one architecture, up to the model's name; ``split(join(members, weights))`` gives the same
weights to the bit; a model that ``join`` did not make is taken as one member by itself, whatever its layers are called.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.architecture import build, canonical, set_weights, to_json, weights_of
from fedretrain.errors import ConfigurationError
from fedretrain.modelfile import BaseModel
from fedretrain.signature import input_names, output_names

if TYPE_CHECKING:
    import keras

NAME = "ensemble"
_MEMBER = "member"
_WEIGHTS = "member_weights"


@dataclass(frozen=True, eq=False)
class Members:
    """The models in a model, and how much each counts; the weights add up to 1."""

    models: tuple[BaseModel, ...]
    weights: tuple[float, ...]


def split(model: BaseModel, allow_modules: Sequence[str] = ()) -> Members:
    """The members of a model that ``join`` made; any other model is one member of weight 1.

    Raises:
        ModelRefused: A layer outside the allow-list.
    """
    config = json.loads(model.architecture)
    layers = config["config"].get("layers", []) if config["class_name"] == "Functional" else []
    found = [layer for layer in layers if str(layer["config"].get("name", "")).startswith(f"{_MEMBER}_")]
    nested = [layer for layer in found if layer["config"]["name"] != _WEIGHTS]
    if config["config"].get("name") != NAME or len(nested) < 2 or not _is_joined(model, nested, allow_modules):
        return Members((model,), (1.0,))
    whole = build(model.architecture, allow_modules)
    set_weights(whole, model.weights)
    architecture = _named(nested[0], _MEMBER)
    parts = [weights_of(whole.get_layer(f"{_MEMBER}_{i}")) for i in range(1, len(nested) + 1)]
    shares = weights_of(whole.get_layer(_WEIGHTS))[0].ravel().astype(float)
    members = tuple(BaseModel(architecture, part, model.compile_config) for part in parts)
    return Members(members, tuple(float(share) for share in shares))


def join(members: Sequence[BaseModel], weights: Sequence[float], allow_modules: Sequence[str] = ()) -> BaseModel:
    """One model of several.

    Args:
        members: At least two, of one architecture; compiled as the first is.
        weights: How much each counts; scaled to add up to 1.
        allow_modules: As in the job.

    Raises:
        ConfigurationError: The members differ in their architecture, or an output has more than one unknown length.
        ModelRefused: A layer outside the allow-list.
    """
    nested = [_named(json.loads(member.architecture), f"{_MEMBER}_{i}") for i, member in enumerate(members, start=1)]
    if len({_named(json.loads(one), _MEMBER) for one in nested}) != 1:
        raise ConfigurationError(
            "ensemble: expected members of one architecture, got others; start the ensemble anew from a single model"
        )
    whole = _joined(nested, allow_modules)
    for i, member in enumerate(members, start=1):
        set_weights(whole.get_layer(f"{_MEMBER}_{i}"), member.weights)
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    whole.get_layer(_WEIGHTS).set_weights([shares.reshape(-1, 1).astype(np.float32)])
    return BaseModel(to_json(whole), weights_of(whole), members[0].compile_config)


def _joined(nested: Sequence[str], allow_modules: Sequence[str]) -> "keras.Model":
    """The whole, with initial weights."""
    import keras

    models = [build(architecture, allow_modules) for architecture in nested]
    first = models[0]
    inputs = [
        keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
        for name, tensor in zip(input_names(first), first.inputs, strict=True)
    ]
    given = keras.tree.pack_sequence_as(first.input, inputs) if len(inputs) > 1 else inputs[0]
    predictions = [keras.tree.flatten(model(given)) for model in models]
    average = keras.layers.Dense(1, use_bias=False, trainable=False, dtype="float32", name=_WEIGHTS)
    outputs = [_averaged(name, [of[i] for of in predictions], average) for i, name in enumerate(output_names(first))]
    struct = keras.tree.pack_sequence_as(first.output, outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(given, struct, name=NAME)


def _averaged(name: str, tensors: Sequence[Any], average: Any) -> Any:
    """One output's weighted average over the members, from a layer with the output's name."""
    import keras

    shape = [-1 if n is None else n for n in tensors[0].shape[1:]]
    if shape.count(-1) > 1:
        raise ConfigurationError(f"ensemble: output '{name}': expected at most one unknown length, got {shape}")
    columns = [keras.layers.Reshape((*shape, 1), name=f"{name}_{i}")(t) for i, t in enumerate(tensors, start=1)]
    beside = keras.layers.Concatenate(axis=-1, name=f"{name}_members")(columns)
    return keras.layers.Reshape(tuple(shape), name=name)(average(beside))


def _named(config: dict[str, Any], name: str) -> str:
    """An architecture under another name; how it was built once, which Keras finds out by itself, is left out."""
    rest = {key: value for key, value in config.items() if key != "build_config"}
    return canonical({**rest, "config": {**config["config"], "name": name}})


def _is_joined(model: BaseModel, nested: Sequence[dict[str, Any]], allow_modules: Sequence[str]) -> bool:
    """Whether ``join`` makes this architecture of these members."""
    own = [_own(layer) for layer in nested]
    return to_json(_joined([_named(one, one["config"]["name"]) for one in own], allow_modules)) == model.architecture


def _own(layer: dict[str, Any]) -> dict[str, Any]:
    """The serialized model in a functional model's list of layers."""
    return {key: value for key, value in layer.items() if key not in {"name", "inbound_nodes"}}
