"""The last layer of a model: the dense layer whose values are the model's answer, but for its activation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigurationError

if TYPE_CHECKING:
    import keras

Kind = Literal["softmax", "sigmoid", "linear"]


@dataclass(frozen=True, eq=False)
class LastLayer:
    """A dense layer at the end of a model with one output.

    Attributes:
        kernel: Position of its kernel [d, c] in ``model.variables``.
        bias: Position of its bias [c], -1 where it has none.
        activation: What is made of its values.
        features: A model that gives its inputs [n, d], with the same variables; several inputs are a list, in order.
    """

    kernel: int
    bias: int
    activation: Kind
    features: Any


def find_last_layer(model: "keras.Model") -> LastLayer:
    """The last layer of a functional or sequential model with one output.

    Raises:
        ConfigurationError: Several outputs, or another end than a dense layer of one axis with softmax, sigmoid or no
            activation, or one with an activation layer behind it.
    """
    import keras

    if len(model.outputs) != 1:
        raise ConfigurationError(f"last layer: expected a model with one output, got {len(model.outputs)}")
    layer, activations = _operation(model.outputs[0]), []
    while isinstance(layer, keras.layers.Activation | keras.layers.Softmax):
        activations.append("softmax" if isinstance(layer, keras.layers.Softmax) else _name(layer.activation))
        layer = _operation(layer.input)
    if not isinstance(layer, keras.layers.Dense) or type(layer) is not keras.layers.Dense:
        raise ConfigurationError(
            f"last layer: expected a Dense layer at the end of the model, got {type(layer).__name__} '{layer.name}'"
        )
    activations = [name for name in [*activations, _name(layer.activation)] if name != "linear"]
    if len(layer.input.shape) != 2 or len(activations) > 1 or not set(activations) <= {"softmax", "sigmoid"}:
        raise ConfigurationError(
            f"last layer '{layer.name}': expected one axis and softmax, sigmoid or no activation, "
            f"got {len(layer.input.shape) - 1} axes and {', '.join(activations) or 'none'}"
        )
    places = {id(variable): i for i, variable in enumerate(model.variables)}
    bias = places[id(layer.bias)] if layer.use_bias else -1
    kind: Any = activations[0] if activations else "linear"
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    return LastLayer(places[id(layer.kernel)], bias, kind, keras.Model(inputs, layer.input))


def _operation(tensor: Any) -> Any:
    return tensor._keras_history.operation  # noqa: SLF001 - Keras has no other way from a tensor to its layer


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", activation))
