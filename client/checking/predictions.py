"""The model's answers about a site's examples, as probabilities, and projections of its penultimate layer.

TensorFlow is loaded by ``compute`` alone; what comes of it is NumPy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.checks import decisions
from fedretrain.contract import Contract, OutputSpec
from fedretrain.dataset import Dataset
from fedretrain.errors import DeclinedRequest
from fedretrain.features import values

if TYPE_CHECKING:
    from client.pace import Pace

Array = NDArray[Any]
_PIECE = 256


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model says about n examples.

    Attributes:
        probabilities: By output that decides something: float64 [n, labels]; of several decisions each label's own.
        features: Features of the penultimate layer by name, float64 [n].
    """

    probabilities: dict[str, Array]
    features: dict[str, Array]

    def predicted(self, spec: OutputSpec) -> Array:
        """The label that is most likely, int64 [n]; of several decisions whether each label is, bool [n, labels]."""
        found = self.probabilities[spec.name]
        return np.asarray(found > 0.5 if decisions(spec) == "several" else np.argmax(found, axis=1))

    def confidence(self, spec: OutputSpec) -> Array:
        """The greatest probability, float64 [n]; of several decisions the product of those of each."""
        found = self.probabilities[spec.name]
        if decisions(spec) == "several":
            return np.asarray(np.prod(np.maximum(found, 1 - found), axis=1))
        return np.asarray(found.max(axis=1))

    def right(self, spec: OutputSpec, given: Array) -> Array:
        """Whether the model says what the labels ``given`` say (``client.checking.reading.Found``), bool [n]."""
        predicted = self.predicted(spec)
        if decisions(spec) == "several":
            count = predicted.shape[1]
            return np.asarray((predicted == given[:, :count]).all(axis=1) & ~given[:, count:].any(axis=1))
        return np.asarray(predicted == given)


def compute(model: Any, contract: Contract, data: Dataset, from_logits: Sequence[bool], pace: "Pace") -> Answers:
    """The answers of a model at the values it has.

    Args:
        model: Built; its outputs are the contract's.
        contract: Describes it; its features of the kind "projection" are computed.
        data: Complete examples, at least one.
        from_logits: By output whether its values are no probabilities yet.
        pace: Looks after the time the site's policy allows.

    Raises:
        DeclinedRequest: ``training-diverged`` where an answer is not finite; ``policy`` where it takes too long.
    """
    wanted = [feature for feature in contract.features if feature.kind == "projection"]
    layers, hidden = _with_hidden(model) if wanted else (model, False)
    parts: list[list[Array]] = []
    projected: list[dict[str, Array]] = []
    for x in pace.through(_pieces(data, contract)):
        found = _outputs(layers, model, x)
        if hidden:
            projected.append(values(contract, wanted, {}, found.pop()))
        parts.append(found)
    probabilities = {}
    for place, spec in enumerate(contract.outputs):
        if decisions(spec) != "none":
            raw = np.concatenate([part[place] for part in parts])
            probabilities[spec.name] = as_probabilities(raw, spec, from_logits=from_logits[place])
    names = projected[0] if projected else {}
    return Answers(probabilities, {name: np.concatenate([part[name] for part in projected]) for name in names})


def as_probabilities(raw: Array, spec: OutputSpec, *, from_logits: bool) -> Array:
    """A model's values [n, ...] as probabilities, float64 [n, labels]; raises DeclinedRequest as ``compute``."""
    wide = raw.astype(np.float64).reshape(len(raw), -1)
    if not np.isfinite(wide).all():
        raise DeclinedRequest("training-diverged", "check", "finite answers of the model")
    if spec.kind in ("multiclass", "onehot"):
        if from_logits:
            wide = np.exp(wide - wide.max(axis=1, keepdims=True))
            wide /= wide.sum(axis=1, keepdims=True)
        return np.clip(wide, 0, 1)
    if from_logits:
        wide = np.exp(-np.logaddexp(0, -wide))
    wide = np.clip(wide, 0, 1)
    return np.concatenate([1 - wide, wide], axis=1) if spec.kind == "binary" else wide


def _pieces(data: Dataset, contract: Contract) -> Iterator[list[Array]]:
    for start in range(0, len(data), _PIECE):
        yield [data.x[spec.name][start : start + _PIECE] for spec in contract.inputs]


def _with_hidden(model: Any) -> tuple[Any, bool]:
    """A model that gives the penultimate layer after the outputs, and whether there is such a layer."""
    import keras

    from fedretrain.features import penultimate

    layers = penultimate(model)
    if layers is None:
        return model, False
    return keras.Model(model.inputs, [*model.outputs, layers.output]), True


def _outputs(layers: Any, model: Any, x: Sequence[Array]) -> list[Array]:
    """What the layers give for a piece, in inference mode."""
    import keras
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(array) for array in x]
    if layers is not model:
        inputs: Any = tensors[0] if len(tensors) == 1 else tensors
    else:
        inputs = tensors[0] if len(tensors) == 1 else keras.tree.pack_sequence_as(model.input, tensors)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(layers(inputs, training=False))]
