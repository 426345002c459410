"""Whether XLA compiles the steps of a model: as the job says, otherwise by a rule that asks nothing but the job.

Compiled steps have other last bits than TensorFlow's. All who train in one run, and a simulation and the deployment it
stands for, have to decide alike, so no machine decides by what it finds faster: ``simulations.benchmarks.compiling``
tries both on a machine, and what it finds can be written into the job (``train.jit_compile``).
"""

from typing import Any

import keras

from fedretrain.architecture import all_layers
from fedretrain.job import TrainSection

MOST_PARAMETERS = 4_000_000
"""Where products take most of the time XLA gains nothing, and its loop holds the variables twice."""

FEWEST_ROUNDS = 20
"""Compiling takes each process a second or two, which a run of few rounds does not earn back."""

_SUITED = frozenset(
    {
        *("InputLayer", "Dense", "Flatten", "Reshape", "Permute", "RepeatVector", "Activation", "ReLU", "LeakyReLU"),
        *("PReLU", "ELU", "Softmax", "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "Normalization"),
        *("BatchNormalization", "LayerNormalization", "UnitNormalization", "Rescaling", "ActivityRegularization"),
        *("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract", "Identity"),
        *("Sequential", "Functional"),
    }
)


def chosen(model: keras.Model, train: TrainSection) -> bool:
    """As the job says; where it does not, whether the model is ``suited`` and the run long enough."""
    if train.jit_compile is not None:
        return train.jit_compile
    return train.rounds >= FEWEST_ROUNDS and suited(model)


def suited(model: keras.Model) -> bool:
    """Whether the model is of the kind that XLA makes faster on CPUs: dense layers and what goes between them, small.

    Convolutions in a loop are many times slower with it; recurrent layers and a site's own classes are left alone.
    """
    if any(None in tensor.shape[1:] for tensor in model.inputs) or model.count_params() > MOST_PARAMETERS:
        return False
    return all(type(layer).__name__ in _SUITED and _of_keras(layer) for layer in all_layers(model))


def _of_keras(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")
