"""How certain a candidate is of its answers: a posterior of its last layer, made at the sites, told on the holdouts.

Invariants: nothing here decides about a release; no holdout has any part in the posterior; the same run has the same
posterior however often it is resumed, once it stands in the run's folder.

Where a mode trains on new examples alone, the curvature that older ones gave the release in use is added.

``uncertainty.safetensors`` has, of ``strategies.laplace``, "last.curvature", the upper triangle of G/σ² row by row,
float32 [p (p + 1) / 2], and in float64 "last.values" [p] (θ*), "last.prior" [] (λ), "last.noise" [] (σ²) and
"last.examples" [] (N).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedretrain import atomic
from fedretrain.contract import Contract, OutputSpec
from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import NamedConfig, UncertaintySection
from fedretrain.lastlayer import LastLayer, find_last_layer
from fedretrain.modelfile import BaseModel
from fedretrain.sums import layer_size, unpacked
from strategies.laplace import LastLayerPosterior, moderated, posterior
from strategies.posterior import Posterior

from . import calibration, prior
from .events import EventLog
from .holdouts import load_holdouts
from .modes import Candidate
from .plan import Plan
from .rounds import Rounds
from .wanted import companions_of

Array = NDArray[Any]
_BATCH = 256
_ONLY_NEW = ("incremental", "replay")  # modes in which the sites' sum is over new examples alone
_EXPECTED = {"multiclass": "softmax", "onehot": "softmax", "binary": "sigmoid", "multilabel": "sigmoid"}


@dataclass(frozen=True, eq=False)
class Certainty:
    """What was found out about a candidate.

    Attributes:
        report: For the gate's report; plain JSON.
        tensors: For ``uncertainty.safetensors``.
    """

    report: dict[str, Any]
    tensors: dict[str, Array]


def check_uncertainty(plan: Plan) -> None:
    """Refuse what would only come out after the last round; loads TensorFlow.

    Raises:
        ConfigurationError: The model's end is not one whose certainty can be found out.
    """
    if plan.job.uncertainty is None:
        return
    if plan.job.train.mode == "ensemble":
        raise ConfigurationError(
            "uncertainty: expected a candidate that ends with a dense layer; the answer of train.mode = 'ensemble' is "
            "a mean of several models'. Leave [uncertainty] out"
        )
    _opened(plan, plan.base)


def assess(plan: Plan, candidate: Candidate, rounds: Rounds, path: Path, emit: EventLog) -> dict[str, Any] | None:
    """Find out what the job asks for, and keep it in the file ``path``.

    Where too few sites answer, that is said, and the run goes on.

    Returns:
        What the gate's report says of it; None for nothing.

    Raises:
        MachineError: The disk, or the way to the sites.
    """
    tensors: dict[str, Array] = {}
    report: dict[str, Any] | None = None
    if plan.job.uncertainty is not None:
        report = {"method": plan.job.uncertainty.method}
        with _told(emit, report):
            found = find_out(plan, candidate, rounds)
            report, tensors = found.report, {**found.tensors}
    objective = companions_of(plan.job).get("posterior")
    if isinstance(objective, Posterior):
        with _told(emit, {}):
            tensors |= _posterior_of(plan, candidate, rounds, objective)
    if tensors:
        atomic.write_bytes(path, save(tensors))
    return report


@contextmanager
def _told(emit: EventLog, report: dict[str, Any]) -> Iterator[None]:
    """Let the run go on where the sites do not make a sum, and say why it is missing."""
    try:
        yield
    except RunFailed as error:
        report["missing"] = str(error)
        emit("warning", text=f"how certain the candidate is could not be found out: {error}")


def _posterior_of(plan: Plan, candidate: Candidate, rounds: Rounds, objective: Posterior) -> dict[str, Array]:
    """The diagonal posterior of the candidate, for the release that comes after it (``server.prior``)."""
    began = rounds.companions[objective.companions[0]]
    found = rounds.ask_sum(objective.sum("trained"), [candidate.model.weights[i] for i in plan.contract.changing])
    precision = [np.asarray(array, np.float64) * began.examples for array in began.arrays]
    return prior.updated(precision, found.arrays, found.examples)


def find_out(plan: Plan, candidate: Candidate, rounds: Rounds) -> Certainty:
    """Have the sites make the sum, and measure what follows from it on every holdout.

    Raises:
        RunFailed: Too few sites answered.
        MachineError: The disk, or the way to the sites.
    """
    layer = _opened(plan, candidate.model)
    what = NamedConfig(name="gauss-newton", kernel=layer.kernel, bias=layer.bias)
    weights = candidate.model.weights
    found = rounds.ask_sum(what, [weights[i] for i in plan.contract.changing])
    triangle, error = found.arrays.values()
    noise = max(float(error), 1e-12) if plan.contract.outputs[0].kind == "regression" else 1.0
    section = plan.job.uncertainty or UncertaintySection()
    values, outputs = _values(layer, weights)
    carried, before = _carried(plan, rounds, triangle)
    whole = triangle * (found.examples / noise) + carried
    made = posterior(unpacked(whole), values, outputs, noise=noise, prior=section.prior_precision)
    report = {
        "method": section.method,
        "parameters": len(values),
        "examples": found.examples,
        "carried": before,
        "sites": list(found.sites),
        "prior_precision": made.prior,
        "noise": noise,
        "bytes": found.bytes_down + found.bytes_up,
        "holdouts": measured(plan, candidate.model, made),
    }
    tensors = {
        "last.curvature": whole.astype(np.float32),
        "last.values": values,
        "last.prior": np.asarray(made.prior),
        "last.noise": np.asarray(noise),
        "last.examples": np.asarray(float(found.examples + before)),
    }
    return Certainty(report, tensors)


def _carried(plan: Plan, rounds: Rounds, like: Array) -> tuple[Array, int]:
    """The curvature that the release in use has of older examples, and of how many; nothing where the sum has them."""
    if plan.job.train.mode in _ONLY_NEW:
        known = rounds.companions.in_use()
        found, examples = known.get("last.curvature"), known.get("last.examples")
        if found is not None and examples is not None and found.shape == like.shape:
            return found.astype(np.float64), round(float(examples))
    return np.zeros(like.shape), 0


def measured(plan: Plan, model: BaseModel, made: LastLayerPosterior) -> list[dict[str, Any]]:
    """On each holdout: how well the model's answers fit as they are ("before"), and with its uncertainty ("after")."""
    layer = _opened(plan, model)
    spec = plan.contract.outputs[0]
    found = []
    for section, data in load_holdouts(plan.job, plan.contract, plan.train):
        features, logits = _features(layer, data, plan.contract, model.weights)
        before, after = _scores(spec, features, logits, data, made)
        found.append({"name": section.name, "kind": spec.kind, "n": len(data), "before": before, "after": after})
    return found


def _scores(
    spec: OutputSpec, features: Array, logits: Array, data: Dataset, made: LastLayerPosterior
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    variance = made.variance(features)
    labels, weights = data.y[spec.name], data.sample_weight
    if spec.kind == "regression":
        targets = np.asarray(labels, np.float64).reshape(logits.shape)
        own = np.diagonal(variance, axis1=1, axis2=2)
        spreads = (np.full_like(own, made.noise), own + made.noise)
        return tuple(calibration.of_values(logits, spread, targets, weights) for spread in spreads)  # type: ignore[return-value]
    decisions = spec.kind in ("binary", "multilabel")
    both = (logits, moderated(logits, variance, exclusive=not decisions))
    if decisions:
        yes = np.asarray(labels).reshape(logits.shape)
        return tuple(calibration.of_decisions(_sigmoid(f), yes, weights) for f in both)  # type: ignore[return-value]
    classes = np.asarray(labels).argmax(-1) if spec.kind == "onehot" else np.asarray(labels).reshape(-1)
    return tuple(calibration.of_labels(_softmax(f), classes, weights) for f in both)  # type: ignore[return-value]


def _opened(plan: Plan, model: BaseModel) -> LastLayer:
    """The model's last layer; raises ConfigurationError where the posterior has no meaning for it."""
    from fedretrain.variables import prepare_model

    contract, section = plan.contract, plan.job.model
    built = prepare_model(model.architecture, section.freeze, section.allow_modules, model.weights)
    try:
        layer = find_last_layer(built)
        layer_size(contract, layer.kernel, layer.bias)
    except ConfigurationError as error:
        raise ConfigurationError(f"uncertainty: {error}; leave [uncertainty] out") from None
    rules = {contract.variables[i].rule for i in (layer.kernel, layer.bias) if i >= 0}
    if "personal" in rules:
        raise ConfigurationError("uncertainty: expected a last layer that all sites share, got one that stays at each")
    expected = _EXPECTED.get(contract.outputs[0].kind, "linear")
    if layer.activation not in (expected, "linear"):
        raise ConfigurationError(
            f"uncertainty: expected {expected} or no activation at the end of a {contract.outputs[0].kind} model, got "
            f"{layer.activation}; leave [uncertainty] out"
        )
    return layer


def _features(layer: LastLayer, data: Dataset, contract: Contract, weights: list[Array]) -> tuple[Array, Array]:
    """φ, with 1 behind it where the layer has a bias, and the logits, float64."""
    parts = []
    for start in range(0, len(data), _BATCH):
        batch = data.take(np.arange(start, min(start + _BATCH, len(data))))
        x = [batch.x[spec.name] for spec in contract.inputs]
        parts.append(np.asarray(layer.features(x[0] if len(x) == 1 else x, training=False), np.float64))
    features = np.concatenate(parts)
    kernel = weights[layer.kernel].astype(np.float64)
    if layer.bias < 0:
        return features, features @ kernel
    bias = weights[layer.bias].astype(np.float64)
    return np.concatenate([features, np.ones((len(features), 1))], axis=1), features @ kernel + bias


def _values(layer: LastLayer, weights: list[Array]) -> tuple[Array, int]:
    """θ*, float64 [p], and how many outputs the layer has."""
    kernel = weights[layer.kernel]
    parts = [kernel.reshape(-1), *([weights[layer.bias].reshape(-1)] if layer.bias >= 0 else [])]
    return np.concatenate(parts).astype(np.float64), kernel.shape[1]


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances: Array = powers / powers.sum(axis=1, keepdims=True)
    return chances


def _sigmoid(logits: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
