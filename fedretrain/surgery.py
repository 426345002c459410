"""A model made of another: fresh weights, a new head, another label space.

Invariants:

- Whatever is made is built through the allow-list, as any architecture is (``fedretrain.architecture``).
- Layers that both models have keep their names and their values, bit for bit.
- What is drawn at random follows from a seed alone.

An output's head is its last Dense layer, with an Activation or Softmax layer behind it or without.
"""

import difflib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .allowlist import REFUSED, import_named
from .architecture import build, set_weights, to_json, weights_of
from .errors import ConfigurationError, ModelRefused
from .job import NamedConfig, Reference
from .modelfile import BaseModel
from .signature import output_names
from .variables import variable_specs

if TYPE_CHECKING:
    import keras

Arrays = list[NDArray[Any]]
Sources = Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Head:
    """An output's last layers: ``dense`` stands on ``features``; ``position`` is the output's."""

    position: int
    dense: "keras.layers.Dense"
    activation: "keras.layers.Layer | None"
    features: Any

    @property
    def last(self) -> "keras.layers.Layer":
        """The layer that gives the output its name."""
        return self.activation or self.dense


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initializers without a seed of their own draw from this one inside, whatever this process drew before."""
    before = random.getstate()
    random.seed(seed)  # Keras draws each initializer's seed from here, when a layer is made
    try:
        yield
    finally:
        random.setstate(before)


def fresh_weights(base: BaseModel, seed: int, allow_modules: Sequence[str] = ()) -> Arrays:
    """What the architecture's own initializers draw, by position; states of random layers are 0."""
    with seeded(seed):
        return _weights(build(base.architecture, allow_modules))


def units(base: BaseModel, output: str | None, key: str, allow_modules: Sequence[str] = ()) -> tuple[str, int]:
    """Name of an output and how many units its head has; raises ConfigurationError as ``with_labels``."""
    model = build(base.architecture, allow_modules)
    head = _head(model, output, key)
    return output_names(model)[head.position], int(head.dense.units)


def gives_logits(base: BaseModel, output: str, allow_modules: Sequence[str] = ()) -> bool:
    """Whether an output's last layer has no softmax or sigmoid, so that what it gives are no probabilities."""
    import keras

    model = build(base.architecture, allow_modules)
    last = _operation(model.outputs[output_names(model).index(output)])
    if isinstance(last, keras.layers.Softmax) or type(last).__name__ in {"Softmax", "Sigmoid"}:  # those of keras.ops
        return False
    return getattr(getattr(last, "activation", None), "__name__", "") not in {"softmax", "sigmoid"}


def with_labels(  # noqa: PLR0913, PLR0917 - what the new rows follow from
    base: BaseModel, output: str, sources: Sources, seed: int, key: str, allow_modules: Sequence[str] = ()
) -> BaseModel:
    """The model with other output rows; all else stays as it is.

    Args:
        base: The model.
        output: Which output; its head has one unit for each label.
        sources: For each wanted label the old ones it takes the place of, by position. One: its row is kept bit for
            bit. Several: the mean of their rows, with the logarithm of their number added to the bias, so that the
            merged label is about as probable as they were together. None: a row that the layer's initializers draw.
        seed: What these draw from.
        key: What the job calls the table, for errors.
        allow_modules: As in the job.

    Raises:
        ConfigurationError: The model's last layers are none that rows can be added to.
        ModelRefused: The model cannot be built again.
    """
    with seeded(seed), _own_errors(key):
        model = _loaded(base, allow_modules)
        head = _head(model, output, key)
        dense = type(head.dense).from_config({**head.dense.get_config(), "units": len(sources)})
        result = dense(head.features)
        if head.activation is not None:
            result = type(head.activation).from_config(head.activation.get_config())(result)
        made = _with_output(model, head.position, result)
    dense.set_weights(_rows([w.numpy() for w in head.dense.weights], dense.get_weights(), sources))
    return _finished(made, base.compile_config, allow_modules)


def with_head(  # noqa: PLR0913, PLR0917 - what the new head follows from
    base: BaseModel,
    output: str | None,
    after: str | None,
    head: Sequence[NamedConfig] | Reference,
    seed: int,
    allow_modules: Sequence[str] = (),
) -> BaseModel:
    """The model with new layers in place of an output's head; they start from what their initializers draw.

    The last of them has the name of the layer that gave the output before, so that the output's name stays, unless that
    layer stays too; the others are called ``head_1`` and so on.

    Args:
        base: The model.
        output: Which output, where there are several.
        after: The layer on which the new head stands; default: what the old head stands on.
        head: Layers of Keras by class name with their settings, or a function of the operator's own that is given what
            the head stands on and returns its output.
        seed: What the initializers draw from.
        allow_modules: As in the job.

    Raises:
        ConfigurationError: No such output or layer, layers that do not fit, or a function that fails.
        ModelRefused: A layer outside the allow-list.
    """
    with seeded(seed), _own_errors("transfer.head"):
        model = _loaded(base, allow_modules)
        position = _position(model, output, "transfer.output")
        if after is None:
            old = _head(model, output, "transfer")
            features, name = old.features, old.last.name
        else:
            last, below = _operation(model.outputs[position]), _layer(model, after)
            features, name = below.output, None if below is last else last.name
        if isinstance(head, str):
            result = _called(head, features)
        else:
            result = features
            for layer in _layers(head, name, {layer.name for layer in model.layers}):
                result = layer(result)
        made = _with_output(model, position, result)
    return _finished(made, base.compile_config, allow_modules)


def _loaded(base: BaseModel, allow_modules: Sequence[str]) -> "keras.Model":
    model = build(base.architecture, allow_modules)
    set_weights(model, base.weights)
    return model


def _with_output(model: "keras.Model", position: int, result: Any) -> "keras.Model":
    """A functional model with the tensor ``result`` as the output at ``position``."""
    import keras

    outputs = [result if i == position else tensor for i, tensor in enumerate(model.outputs)]
    packed = outputs[0] if len(outputs) == 1 else keras.tree.pack_sequence_as(model.output, outputs)
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
    return keras.Model(inputs, packed, name=model.name)


def _finished(made: "keras.Model", compile_config: dict[str, Any] | None, allow_modules: Sequence[str]) -> BaseModel:
    """The model as its own architecture is built, so that nobody ever sees another order of its variables."""
    architecture = to_json(made)
    model = build(architecture, allow_modules)
    values = {layer.name: [variable.numpy() for variable in layer.variables] for layer in made.layers}
    for layer in model.layers:
        for variable, array in zip(layer.variables, values[layer.name], strict=True):
            variable.assign(array)
    return BaseModel(architecture, _weights(model), compile_config)


def _weights(model: "keras.Model") -> Arrays:
    """All variables by position; states of random layers are 0, as in every base model."""
    pairs = zip(variable_specs(model), weights_of(model), strict=True)
    return [np.zeros_like(array) if spec.rule == "local" else array for spec, array in pairs]


def _rows(old: Arrays, fresh: Arrays, sources: Sources) -> Arrays:
    """Kernel [features, labels] and bias [labels], where there is one, of the wanted labels."""
    made = [array.copy() for array in fresh]
    for label, of in enumerate(sources):
        if len(of) == 1:
            for to, array in zip(made, old, strict=True):
                to[..., label] = array[..., of[0]]
        elif of:
            for to, array in zip(made, old, strict=True):
                to[..., label] = array[..., list(of)].mean(axis=-1)
            if len(made) > 1:
                made[1][label] += np.log(len(of))
    return made


def _head(model: "keras.Model", output: str | None, key: str) -> _Head:
    """The last layers of an output; raises ConfigurationError where they are no head."""
    import keras

    position = _position(model, output, f"{key}.output")
    tensor, activation = model.outputs[position], None
    if isinstance(_operation(tensor), keras.layers.Activation | keras.layers.Softmax):
        activation, tensor = _operation(tensor), _before(tensor)
    dense = _operation(tensor)
    if type(dense) is not keras.layers.Dense:
        raise ConfigurationError(
            f"{key}: expected a model whose output comes from a Dense layer, with an Activation or Softmax behind it "
            f"or without, got {type(dense).__name__} '{dense.name}'; name the layer a new head is to stand on with "
            'train.mode = "transfer" and transfer.after'
        )
    return _Head(position, dense, activation, _before(tensor))


def _position(model: "keras.Model", output: str | None, key: str) -> int:
    names = output_names(model)
    if output is None and len(names) > 1:
        raise ConfigurationError(f"{key}: expected one of the model's outputs {names}, got none")
    if output is not None and output not in names:
        raise ConfigurationError(f"{key}: expected one of the model's outputs {names}, got '{output}'")
    return 0 if output is None else names.index(output)


def _operation(tensor: Any) -> Any:
    """What gives a symbolic tensor."""
    return tensor._keras_history.operation  # noqa: SLF001 - Keras has no public way back


def _before(tensor: Any) -> Any:
    """The one tensor that a layer's output is computed from."""
    history = tensor._keras_history  # noqa: SLF001 - as above
    inputs = history.operation._inbound_nodes[history.node_index].input_tensors  # noqa: SLF001
    if len(inputs) != 1:
        raise ConfigurationError(f"layer '{history.operation.name}': expected one input, got {len(inputs)}")
    return inputs[0]


def _layer(model: "keras.Model", name: str) -> "keras.layers.Layer":
    names = [layer.name for layer in model.layers]
    if name not in names:
        raise ConfigurationError(
            f"transfer.after: expected a layer of the model, got '{name}'; did you mean '{_near(name, names)}'?"
        )
    return model.layers[names.index(name)]


def _layers(head: Sequence[NamedConfig], last: str | None, taken: set[str]) -> "Iterator[keras.layers.Layer]":
    """New layers by their settings, with names that follow from the model alone."""
    import keras

    known = {n: kind for n, kind in vars(keras.layers).items() if isinstance(kind, type) and n not in REFUSED}
    free = (name for number in range(1, 10_000) if (name := f"head_{number}") not in taken)
    for number, config in enumerate(head):
        if config.name not in known:
            raise ConfigurationError(
                f"transfer.head.{number}.name: Keras has no layer '{config.name}' that may be used here; did you mean "
                f"'{_near(config.name, sorted(known))}'?"
            )
        name = last if last is not None and number == len(head) - 1 else next(free)
        try:
            layer: keras.layers.Layer = known[config.name](**config.settings, name=name)
        except Exception as error:  # noqa: BLE001 - Keras raises ValueError, TypeError, AttributeError alike
            raise ConfigurationError(f"transfer.head.{number}: {config.name}: {_line(error)}") from None
        yield layer


def _called(reference: str, features: Any) -> Any:
    """What the operator's own function makes of the features."""
    import keras

    module, _, name = reference.partition(":")
    function = getattr(import_named(module, "transfer.head"), name, None)
    if not callable(function):
        raise ConfigurationError(f"transfer.head: expected a function '{name}' in the module '{module}', got none")
    result = function(features)
    if not isinstance(result, keras.KerasTensor):
        raise ConfigurationError(f"transfer.head: expected '{reference}' to return a tensor, got {type(result)}")
    return result


@contextmanager
def _own_errors(key: str) -> Iterator[None]:
    """What Keras or the operator's function raises inside, in one line that names the key."""
    try:
        yield
    except (ConfigurationError, ModelRefused):
        raise
    except Exception as error:  # noqa: BLE001 - layers that do not fit make Keras raise nearly anything
        raise ConfigurationError(f"{key}: {type(error).__name__}: {_line(error)}") from None


def _near(name: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
