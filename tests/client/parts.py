"""Small models, and the requests and examples that go with them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.site import Site
from client.store import SiteStore
from client.trainer import Trainer
from fedretrain.architecture import build, fingerprint, to_json, weights_of
from fedretrain.contract import Contract, InputSpec, OutputSpec, keys
from fedretrain.dataset import Dataset, as_arrays, load_npz
from fedretrain.digest import weights_digest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import BaseRequest, PrepareRequest, TrainRequest, pack
from fedretrain.variables import freeze as freeze_layers
from fedretrain.variables import variable_specs

Arrays = dict[str, Any]
Weights = list[np.ndarray]
SGD = NamedConfig(name="sgd", learning_rate=0.1)


@dataclass(frozen=True)
class Case:
    """A prepared run: what a site was told, and the base model it holds."""

    request: PrepareRequest
    base: Weights

    @property
    def contract(self) -> Contract:
        return self.request.contract

    @property
    def received(self) -> Weights:
        """The base model's values of the variables that travel."""
        return [self.base[p] for p in self.contract.changing]

    def train_message(self, round_: int = 1, **changes: Any) -> Any:
        body = {
            "run": self.request.run,
            "round": round_,
            "contract": self.contract.digest,
            "globals_digest": weights_digest(self.received),
        }
        arrays = dict(zip(keys(self.contract.changing), self.received, strict=True))
        return pack(TrainRequest.model_validate(body | changes), arrays)

    def base_message(self, **changes: Any) -> Any:
        arrays = dict(zip(keys(range(len(self.base))), self.base, strict=True))
        return pack(BaseRequest.model_validate({"run": self.request.run, "base": self.contract.base} | changes), arrays)


def case(
    model: Any,
    kinds: Mapping[str, tuple[str, str]] | None = None,
    freeze: tuple[str, ...] = (),
    strategy: NamedConfig | None = None,
    allow: tuple[str, ...] = (),
    **train: Any,
) -> Case:
    """A request for ``model``; ``kinds`` gives (kind, loss) by output name, multi-class by default."""
    kinds = kinds or {"y": ("multiclass", "sparse_categorical_crossentropy")}
    architecture, base = to_json(model), weights_of(model)
    frozen = build(architecture, allow)
    freeze_layers(frozen, freeze)
    contract = Contract(
        inputs=tuple(InputSpec(name=t.name, shape=t.shape[1:], dtype=t.dtype) for t in model.inputs),
        outputs=tuple(
            OutputSpec(name=name, shape=t.shape[1:], kind=kind, loss=loss, labels=_labels(kind, t.shape))
            for t, (name, (kind, loss)) in zip(model.outputs, kinds.items(), strict=True)
        ),
        preprocessing=None,
        architecture=fingerprint(architecture),
        base=weights_digest(base),
        variables=variable_specs(frozen, strategy),
    )
    losses = {name: loss for name, (_, loss) in kinds.items()}
    section = {"optimizer": SGD, "loss": losses if len(losses) > 1 else next(iter(losses.values())), "metrics": ()}
    request = PrepareRequest(
        run="run-1",
        contract=contract,
        architecture=architecture,
        freeze=freeze,
        train=TrainSection(**section | train),
        strategy=strategy or NamedConfig(name="fedavg"),
    )
    return Case(request, base)


def _labels(kind: str, shape: tuple[int | None, ...]) -> tuple[str, ...]:
    if kind == "regression":
        return ()
    return ("no", "yes") if kind == "binary" else tuple(str(i) for i in range(shape[-1] or 0))


def examples(of: Case, count: int, seed: int = 0, weights: np.ndarray | None = None) -> Dataset:
    """Random examples that fit the contract, as a trainer takes them."""
    rng = np.random.default_rng(seed)
    contract = of.contract
    x = {s.name: rng.normal(size=(count, *s.shape)) for s in contract.inputs}
    y = {s.name: _random_labels[s.kind](rng, count, s.shape) for s in contract.outputs}
    return as_arrays(Dataset(x=x, y=y, sample_weight=weights), contract)


_random_labels: dict[str, Callable[[Any, int, Any], np.ndarray]] = {
    "multiclass": lambda rng, n, shape: rng.integers(0, shape[-1], (n, *shape[:-1])),
    "onehot": lambda rng, n, shape: np.eye(shape[-1])[rng.integers(0, shape[-1], (n, *shape[:-1]))],
    "binary": lambda rng, n, shape: rng.integers(0, 2, (n, *shape)),
    "multilabel": lambda rng, n, shape: rng.integers(0, 2, (n, *shape)),
    "regression": lambda rng, n, shape: rng.normal(size=(n, *shape)),
}


def classifier(**last: Any) -> Any:
    """Two dense layers, "base" and "head", on four features, three classes."""
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(8, "relu", name="base"),
            keras.layers.Dense(3, "softmax", name="head", **last),
        ]
    )


def pictures() -> Any:
    """Normalization "scale", convolution "conv", BatchNormalization "bn", dropout, "head": every kind of variable."""
    import keras

    keras.utils.set_random_seed(0)
    scale = keras.layers.Normalization(name="scale", axis=None)
    scale.adapt(np.arange(64, dtype="float32").reshape(1, 8, 8, 1))
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="x"),
            scale,
            keras.layers.Conv2D(3, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(3, "softmax", name="head"),
        ]
    )


def four_columns() -> Case:
    """The classifier with its first layer frozen; columns have names and a range."""
    made = case(classifier(), freeze=("base",), metrics=("accuracy",))
    columns = ("age", "height", "weight", "pulse")
    narrow = made.contract.inputs[0].model_copy(update={"low": -50.0, "high": 50.0, "columns": columns})
    contract = made.contract.model_copy(update={"inputs": (narrow,)})
    return Case(made.request.model_copy(update={"contract": contract}), made.base)


def raw(of: Case, count: int = 60) -> Arrays:
    """Good examples as a site's file has them."""
    data = examples(of, count)
    return {"x": data.x["x"], "y": data.y["y"]}


def site_at(of: Case, folder: Path, trainer: Trainer, arrays: Arrays | None = None) -> Site:
    """The site "north" with its file and store in ``folder``."""
    file = folder / "site.npz"
    np.savez(file, **(raw(of) if arrays is None else arrays))
    return Site("north", lambda contract: load_npz(file, contract), SiteStore(folder / "store"), trainer)


def body(reply: RecordDict) -> dict[str, Any]:
    """The body of an answer as it is on the wire."""
    decoded: dict[str, Any] = json.loads(str(reply.config_records["body"]["json"]))
    return decoded
