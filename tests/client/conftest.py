"""One set-up of TensorFlow for all tests of this folder, as a site's process has it."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from client.trainer import Trainer

    from .parts import Case


@pytest.fixture(scope="session")
def tensorflow() -> None:
    """TensorFlow with one thread and deterministic operations."""
    from client.trainer import configure_process

    configure_process()


@pytest.fixture(scope="session")
def of(tensorflow: None) -> "Case":
    """A run of the classifier on four columns."""
    from .parts import four_columns

    return four_columns()


@pytest.fixture(scope="module")
def trainer() -> "Trainer":
    """One warm trainer for all tests of a module."""
    from client.trainer import Trainer

    return Trainer()
