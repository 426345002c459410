"""What a request would train is found from its model."""

from typing import Any

import pytest

from client.layers import trained_layers
from fedretrain.errors import DeclinedRequest

from .parts import Case, case, classifier, pictures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tensorflow")]


def nested() -> Any:
    """The classifier inside another model."""
    import keras

    inner = classifier()
    inner.name = "inner"
    return keras.Sequential([keras.Input((4,), name="x"), inner, keras.layers.Dense(3, "softmax", name="last")])


def test_layers_are_named_by_what_would_travel() -> None:
    """Frozen ones are not, layers without variables are not, moving statistics count, nested ones have their path."""
    assert trained_layers(case(classifier()).request) == ("base", "head")
    assert trained_layers(case(classifier(), freeze=("base",)).request) == ("head",)
    assert trained_layers(case(pictures(), freeze=("head",)).request) == ("conv", "bn")
    assert trained_layers(case(nested(), freeze=("inner/base",)).request) == ("inner/head", "last")


def test_a_contract_that_says_something_else_is_not_believed(of: Case) -> None:
    """A layer cannot be called frozen in one place and be trained in another."""
    with pytest.raises(DeclinedRequest, match="model-mismatch"):
        trained_layers(of.request.model_copy(update={"freeze": ()}))
    with pytest.raises(DeclinedRequest, match="request-invalid"):
        trained_layers(of.request.model_copy(update={"freeze": ("nothing",)}))
    with pytest.raises(DeclinedRequest, match="model-refused"):
        trained_layers(of.request.model_copy(update={"architecture": "{}"}))
