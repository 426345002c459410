"""A model's inputs and outputs as the contract describes them.

Inputs and outputs stand in Keras' own order (``model.inputs``, ``model.outputs``). A name is the key where the model
was made with a dict, otherwise the name of the input layer or of the layer an output comes from: these are part of the
architecture, while the names of Keras' tensors change from process to process.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .contract import InputSpec, Kind, OutputSpec, Shape
from .errors import ConfigurationError
from .job import ContractSection, NamedConfig, TrainSection

if TYPE_CHECKING:
    import keras

_DTYPES = frozenset(
    {"bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "float16", "float32", "float64"}
)
_MULTICLASS = frozenset({"sparse_categorical_crossentropy", "categorical_generalized_cross_entropy"})
_ONEHOT = frozenset({"categorical_crossentropy", "categorical_focal_crossentropy"})
_BINARY = frozenset({"binary_crossentropy", "binary_focal_crossentropy"})
_OTHER_LABELS = frozenset({"ctc", "circle"})


def input_names(model: "keras.Model") -> list[str]:
    """Names of the inputs, in the order of ``model.inputs``; raises ConfigurationError where it has no fixed inputs."""
    return [name for name, _ in _named(model, "inputs")]


def output_names(model: "keras.Model") -> list[str]:
    """Names of the outputs, in the order of ``model.outputs``; raises ConfigurationError likewise."""
    return [name for name, _ in _named(model, "outputs")]


def input_specs(model: "keras.Model", section: ContractSection) -> tuple[InputSpec, ...]:
    """The inputs with the columns and ranges that the job gives.

    Raises:
        ConfigurationError: An input is not of numbers, or columns and ranges do not belong to the inputs.
    """
    named = _named(model, "inputs")
    for name in section.ranges:
        if name not in dict(named):
            raise ConfigurationError(f"contract.ranges: expected names of inputs {list(dict(named))}, got '{name}'")
    specs = [_input_spec(name, tensor, section) for name, tensor in named]
    if section.columns is not None:
        flat = [spec for spec in specs if len(spec.shape) == 1]
        if len(specs) != 1 or len(flat) != 1 or flat[0].shape[0] not in (None, len(section.columns)):
            shapes = {spec.name: list(spec.shape) for spec in specs}
            raise ConfigurationError(
                f"contract.columns: expected one name for each column of a model's only input, got "
                f"{len(section.columns)} names for inputs of shape {shapes}"
            )
        specs = [flat[0].model_copy(update={"columns": section.columns})]
    return tuple(specs)


def output_specs(model: "keras.Model", train: TrainSection, labels: Sequence[str] | None) -> tuple[OutputSpec, ...]:
    """The outputs with the kind of labels that their losses take.

    Args:
        model: The model.
        train: As ``fedretrain.settings.resolve_train`` returns it.
        labels: The job's names of the label space; default "0" to the last position.

    Raises:
        ConfigurationError: An output has no loss or one that does not go with its shape, or ``labels`` has another
            number of names than the label space, or belongs to more than one output.
    """
    named = _named(model, "outputs")
    losses = _losses_by_output(train, [name for name, _ in named])
    specs = [_output_spec(name, _shape(tensor), losses[name]) for name, tensor in named]
    if labels is None:
        return tuple(specs)
    classes = [spec for spec in specs if spec.labels]
    if len(classes) != 1 or len(classes[0].labels) != len(labels) or len(set(labels)) != len(labels):
        expected = {spec.name: len(spec.labels) for spec in classes}
        raise ConfigurationError(
            f"contract.labels: expected as many different names as the one output with labels has, got {list(labels)} "
            f"for outputs with {expected} labels"
        )
    return tuple(spec.model_copy(update={"labels": tuple(labels)}) if spec.labels else spec for spec in specs)


def _named(model: "keras.Model", which: str) -> list[tuple[str, Any]]:
    """Symbolic tensors of a model's ``inputs`` or ``outputs`` with their names."""
    import keras

    tensors = getattr(model, which, None)
    if not tensors:
        raise ConfigurationError(
            f"model '{model.name}': expected a functional or sequential model with {which} of known shape, got a "
            f"{type(model).__name__} without; start it with keras.Input"
        )
    struct = getattr(model, which[:-1]) if len(tensors) > 1 else None
    if isinstance(struct, dict) and len(struct) == len(tensors):
        named = [(str(path[0]), tensor) for path, tensor in keras.tree.flatten_with_path(struct)]
    else:
        named = [(tensor._keras_history.operation.name, tensor) for tensor in tensors]  # noqa: SLF001
    if len(dict(named)) != len(named):
        raise ConfigurationError(
            f"model '{model.name}': expected {which} of different names, got {[name for name, _ in named]}"
        )
    return named


def _shape(tensor: Any) -> Shape:
    return tuple(tensor.shape[1:])


def _input_spec(name: str, tensor: Any, section: ContractSection) -> InputSpec:
    if tensor.dtype not in _DTYPES or tensor.sparse or tensor.ragged:
        form = "sparse" if tensor.sparse else "ragged" if tensor.ragged else "dense"
        raise ConfigurationError(
            f"input '{name}': expected dense numbers, got {form} {tensor.dtype}; turn raw data into numbers beforehand"
        )
    low, high = section.ranges.get(name, (None, None))
    if low is not None and high is not None and low > high:
        raise ConfigurationError(f"contract.ranges.{name}: expected the least value first, got [{low}, {high}]")
    return InputSpec(name=name, shape=_shape(tensor), dtype=tensor.dtype, low=low, high=high)


def _losses_by_output(train: TrainSection, names: Sequence[str]) -> dict[str, str]:
    """The name of each output's loss."""
    losses = train.loss if isinstance(train.loss, dict) else dict.fromkeys(names, train.loss)
    if set(losses) != set(names):
        raise ConfigurationError(
            f"train.loss: expected a loss for each of the outputs {list(names)}, got {list(losses)}"
        )
    return {name: loss.name if isinstance(loss, NamedConfig) else str(loss) for name, loss in losses.items()}


def _output_spec(name: str, shape: Shape, loss: str) -> OutputSpec:
    """The kind of labels follows from the loss, and for binary losses from the number of positions."""
    if loss in _OTHER_LABELS:
        raise ConfigurationError(
            f"train.loss: '{loss}' is not supported: its labels are shaped otherwise than an output"
        )
    positions = shape[-1] if shape else 1
    kind: Kind = "regression"
    if loss in _BINARY:
        kind = "binary" if positions == 1 else "multilabel"
    elif loss in _MULTICLASS | _ONEHOT:
        kind = "multiclass" if loss in _MULTICLASS else "onehot"
        if positions is not None and positions < 2:
            raise ConfigurationError(
                f"train.loss: '{loss}' expects an output with one position for each label, got shape {list(shape)} for "
                f"'{name}'; a single position goes with binary_crossentropy"
            )
    if kind != "regression" and positions is None:
        raise ConfigurationError(f"output '{name}': expected a known number of labels, got shape {list(shape)}")
    count = 0 if kind == "regression" else 2 if kind == "binary" else int(positions or 0)
    return OutputSpec(name=name, shape=shape, kind=kind, loss=loss, labels=tuple(map(str, range(count))))
