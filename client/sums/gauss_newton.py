"""The Gauss-Newton matrix of the last layer, whose values are the logits, or the answers of a regression.

For examples x_n of the site that it trains on, n = 1..N, with the layer's inputs φ_n (1 behind them where it has a
bias), and H_n the Hessian of -log p with respect to the logits f_n::

    G = (1/N) Σ_n w_n (φ_n φ_nᵀ) ⊗ H_n
    H_n = diag(p_n) - p_n p_nᵀ      softmax
    H_n = diag(p_n (1 - p_n))       sigmoid
    H_n = I                         regression, to be divided by the noise's variance

An example without a label weighs nothing.

E. Daxberger, A. Kristiadi, A. Immer, R. Eschenhagen, M. Bauer, P. Hennig: Laplace Redux - Effortless Bayesian Deep
Learning. NeurIPS 2021, https://arxiv.org/abs/2106.14806
"""

from typing import Any

import numpy as np
import tensorflow as tf

from client.graph import Parts, examples_signature, take
from client.sampling import in_order
from fedretrain.contract import OutputSpec
from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.lastlayer import find_last_layer
from fedretrain.sums import GaussNewton, packed

from . import Task, Total, enough
from .tensors import missing

_PIECE = 32  # examples in one call: a block of products for each


def gauss_newton(task: Task, settings: GaussNewton) -> Total:
    """See the module docstring; the matrix' upper triangle and the mean squared error of a regression, float32."""
    rows = enough(task.trained, "training examples")
    blocks = _Blocks(task, settings)
    matrix, error = blocks.zeros()
    for piece in task.pace.through(task.examples.pieces(rows[chosen] for chosen in in_order(len(rows), _PIECE))):
        matrix, error = blocks.add(matrix, error, piece.parts, tf.constant(piece.rows))
    mean_error = np.asarray(error.numpy() / len(rows), np.float32)
    return Total([packed(matrix.numpy() / len(rows)), mean_error], len(rows))


class _Blocks:
    """Adds up φφᵀ ⊗ H in one traced function."""

    def __init__(self, task: Task, settings: GaussNewton) -> None:
        model, contract = task.learner.model, task.request.contract
        try:
            layer = find_last_layer(model)
        except ConfigurationError:
            raise _refused() from None
        if (layer.kernel, layer.bias) != (settings.kernel, settings.bias):
            raise _refused()
        self._features, self._spec = layer.features, contract.outputs[0]
        self._kernel = model.variables[layer.kernel]
        self._bias = model.variables[layer.bias] if layer.bias >= 0 else None
        matrix = sum(v.shape.num_elements() for v in (self._kernel.value, *self._biases()))
        self._shapes = [(matrix, matrix), ()]
        signature = [
            *(tf.TensorSpec(shape, tf.float64) for shape in self._shapes),
            examples_signature(contract, weighted=task.data.sample_weight is not None),
            tf.TensorSpec([None], tf.int32),
        ]
        self.add = tf.function(self._add, input_signature=signature, autograph=False)

    def zeros(self) -> list[Any]:
        """Sums of nothing."""
        return [tf.zeros(shape, tf.float64) for shape in self._shapes]

    def _biases(self) -> list[Any]:
        return [] if self._bias is None else [self._bias.value]

    def _add(self, matrix: Any, error: Any, parts: Parts, rows: Any) -> tuple[Any, Any]:
        x, y, weights = take(parts, rows)
        inputs = x[0] if len(x) == 1 else list(x)
        features = tf.cast(self._features(inputs, training=False), tf.float64)
        logits = features @ tf.cast(self._kernel.value, tf.float64)
        if self._bias is not None:
            logits += tf.cast(self._bias.value, tf.float64)
            features = tf.concat([features, tf.ones_like(features[:, :1])], axis=1)
        weight = tf.cast(weights[0], tf.float64) if weights else tf.ones([tf.size(rows)], tf.float64)
        absent = missing(y[0])
        weight = tf.where(absent, tf.zeros_like(weight), weight)
        curvature = _curvature(self._spec, logits) * weight[:, None, None]
        block = tf.einsum("ni,nj,nab->iajb", features, features, curvature)
        if self._spec.kind == "regression":
            targets = tf.reshape(tf.cast(y[0], tf.float64), tf.shape(logits))
            apart = tf.where(absent[:, None], tf.zeros_like(logits), targets - logits)
            error += tf.reduce_sum(weight * tf.reduce_mean(tf.square(apart), axis=1))
        return matrix + tf.reshape(block, tf.shape(matrix)), error


def _curvature(spec: OutputSpec, logits: Any) -> Any:
    """H of each example, [n, c, c]."""
    if spec.kind in ("multiclass", "onehot"):
        chances = tf.nn.softmax(logits)
        return tf.linalg.diag(chances) - chances[:, :, None] * chances[:, None, :]
    if spec.kind == "regression":
        return tf.linalg.diag(tf.ones_like(logits))
    chances = tf.sigmoid(logits)
    return tf.linalg.diag(chances * (1 - chances))


def _refused() -> DeclinedRequest:
    return DeclinedRequest("request-invalid", "sum gauss-newton", "the positions of the model's last dense layer")
