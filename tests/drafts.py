"""Small release drafts without TensorFlow, and the ways a test damages what was made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.digest import canonical_json, sha256, weights_digest
from fedretrain.release import ReleaseDraft

ARCHITECTURE = canonical_json({"class_name": "Sequential", "config": {"layers": [], "name": "tiny"}}).decode()
LABELS = ("no", "yes")


def weights(seed: int = 0) -> list[NDArray[Any]]:
    """Arrays of every awkward kind: Fortran order, no axis, no element, integers, booleans."""
    random = np.random.default_rng(seed)
    return [
        np.asfortranarray(random.normal(size=(3, 2)).astype(np.float32)),
        random.normal(size=(2,)).astype(np.float32),
        np.array(seed, dtype=np.int64),
        np.zeros((0, 4), dtype=np.float16),
        np.array([True, False]),
    ]


def contract(arrays: list[NDArray[Any]] | None = None, architecture: str = ARCHITECTURE) -> Contract:
    """A contract whose variables are those of ``arrays``."""
    arrays = weights() if arrays is None else arrays
    return Contract(
        inputs=(InputSpec(name="x", shape=(3,), dtype="float32"),),
        outputs=(OutputSpec(name="y", shape=(2,), kind="multiclass", loss="mse", labels=LABELS),),
        preprocessing=None,
        architecture=sha256(architecture.encode()),
        base=weights_digest(arrays),
        variables=tuple(VariableSpec(shape=a.shape, dtype=a.dtype.name, rule="train") for a in arrays),
    )


def draft(run: str = "run-1", seed: int = 1, **changes: Any) -> ReleaseDraft:
    """A draft that passes every check; ``changes`` replace its fields."""
    arrays = changes.pop("weights", None) or weights(seed)
    fields: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "weights": arrays,
        "contract": contract(weights(0)),
        "gate": {"passed": True, "holdouts": [{"name": "old", "passed": True}]},
        "lineage": {"run": run, "sites": ["a", "b"], "rounds": 2, "seed": seed, "job": "0" * 64},
        "keras_file": lambda path: path.write_bytes(b"for people " + run.encode()),
    }
    return ReleaseDraft(**{**fields, **changes})


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(bytes(data))


def read_json(path: Path) -> Any:
    """A file's JSON."""
    return json.loads(path.read_bytes())
