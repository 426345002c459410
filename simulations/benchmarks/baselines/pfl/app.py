"""McMahan et al.'s setting in pfl-research: federated averaging of PyTorch models on the CPU, one user after another.

It runs in an environment of its own (``requirements.txt``) and imports nothing of this project. Model, data, steps and
learning rate are those of the other contenders; there is no evaluation, as that is not what is measured.

Use: ``python app.py --data FOLDER --model 2nn|cnn --epochs 1 --out FILE``; under ``torchrun`` its processes share the
users of a round. ``FOLDER`` holds ``x.npy`` [sites, n, ...] and ``y.npy`` [sites, n]; ``FILE`` gets a line
``{"updates": n, "at": seconds since 1970}`` after each round, and one with 0 updates when the first begins.
"""

# mypy: disable-error-code="import-not-found, misc"
# (what it imports is installed in its own environment alone)

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """All rounds."""
    options = _parse()
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002  # pfl's processes agree on the users of a round through it
    torch.manual_seed(0)

    class Clock(TrainingProcessCallback):
        """Says when rounds end; the first process speaks for all."""

        def __init__(self) -> None:
            self._speaks = os.environ.get("RANK", "0") == "0"

        def on_train_begin(self, *, model: Any) -> Any:
            """The first round begins."""
            self._say(0)
            return super().on_train_begin(model=model)

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            """A round has ended; never stops."""
            self._say(options.per_round)
            return super().after_central_iteration(aggregate_metrics, model, central_iteration=central_iteration)

        def _say(self, updates: int) -> None:
            if self._speaks:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"updates": updates, "at": time.time()}) + "\n")

    network = _network(options.model)
    model = PyTorchModel(
        model=network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    data = _users(options.data)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=options.rounds + 1,
            train_cohort_size=options.per_round,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=options.epochs, local_learning_rate=options.rate, local_batch_size=options.batch
        ),
        callbacks=[Clock()],
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=["2nn", "cnn"], required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--per-round", type=int, default=10)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _users(folder: Path) -> Any:
    """The sites as pfl's users; their tensors are made once."""
    import numpy as np
    import torch
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler

    x, y = (np.load(folder / f"{name}.npy") for name in "xy")
    if x.ndim == 5:
        x = x.transpose(0, 1, 4, 2, 3).copy()  # channels first, as PyTorch has them
    users = {i: Dataset(raw_data=[torch.from_numpy(x[i]), torch.from_numpy(y[i])]) for i in range(len(x))}
    sampler = get_user_sampler("random", list(users))
    return FederatedDataset(users.__getitem__, sampler)


def _network(name: str) -> Any:
    """The paper's model, with the loss that pfl asks for."""
    import torch
    from torch import nn

    class Network(nn.Sequential):
        """Logits of ten digits."""

        def loss(self, x: Any, y: Any) -> Any:
            """Mean cross-entropy."""
            self.train()
            return torch.nn.functional.cross_entropy(self(x), y)

        def metrics(self, x: Any, y: Any) -> dict[str, Any]:  # noqa: ARG002  # pfl's interface
            """None."""
            return {}

    if name == "2nn":
        return Network(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    blocks: list[Any] = []
    for before, after in ((1, 32), (32, 64)):
        blocks += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return Network(*blocks, nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10))


if __name__ == "__main__":
    main()
