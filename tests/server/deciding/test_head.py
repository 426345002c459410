"""The head of a model, read off its file."""

from pathlib import Path

import pytest

from fedretrain.errors import ConfigurationError
from server.deciding.head import base_layers, units

from .kept import write_model


def test_an_activation_layer_belongs_to_the_head(tmp_path: Path) -> None:
    """What is before the last dense layer is the base."""
    write_model(tmp_path / "m.keras", ("InputLayer", "x"), ("Dense", "a"), ("Dense", "b"), ("Activation", "c"))

    assert (base_layers(tmp_path / "m.keras"), units(tmp_path / "m.keras")) == (["a"], 10)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((("Dense", "a"), ("GRU", "b")), "expected a model that ends in a Dense layer, got GRU"),
        ((), "expected a model that ends in a Dense layer, got nothing"),
        ((("InputLayer", "x"), ("Dense", "a")), "expected layers before the model's last one, got none"),
    ],
)
def test_a_model_without_base_or_head_is_refused(
    tmp_path: Path, layers: tuple[tuple[str, str], ...], message: str
) -> None:
    """With what to do instead."""
    write_model(tmp_path / "m.keras", *layers)

    with pytest.raises(ConfigurationError, match=f"{message}; leave 'transfer' out of plan.actions"):
        base_layers(tmp_path / "m.keras")


def test_what_is_no_keras_file_is_refused(tmp_path: Path) -> None:
    """Weights alone say nothing of a head."""
    (tmp_path / "w.h5").write_bytes(b"weights")

    with pytest.raises(ConfigurationError, match=r"expected a \.keras file"):
        units(tmp_path / "w.h5")
