"""The ``model.keras`` that lies beside a release for people; nothing of ours opens it again.

Invariant: it is made from the release's own architecture and weights, so it cannot show another model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedretrain import atomic
from fedretrain.errors import MachineError
from fedretrain.release import Arrays


def keras_writer(
    architecture: str,
    weights: Arrays,
    compile_config: dict[str, Any] | None = None,
    allow_modules: Sequence[str] = (),
) -> Callable[[Path], None]:
    """A function for ``ReleaseDraft.keras_file``; TensorFlow is loaded when it is called.

    Args:
        architecture: The model's JSON config.
        weights: Every variable by position.
        compile_config: The base model's own, so that the copy can be trained further as it is; None leaves it
            uncompiled.
        allow_modules: Modules whose layer classes may be built, as in the job.

    The function raises ModelRefused where the parts do not fit, and MachineError where the disk is full.
    """

    def write(path: Path) -> None:
        from fedretrain.architecture import build, set_weights

        model = build(architecture, allow_modules)
        set_weights(model, weights)
        if compile_config is not None:
            model.compile_from_config(compile_config)
        with atomic.disk_errors(path):
            try:
                model.save(path)
            except RuntimeError as error:  # HDF5 reports a full disk so when it flushes
                raise MachineError(f"{path}: cannot write: {error}; free some space there and start again") from error

    return write
