"""A strategy written for Flower (``flwr.serverapp.strategy.Strategy``), named in the job as ``module:Class``.

What is taken from it: ``configure_train`` chooses the sites of a round, ``aggregate_train`` combines their replies.
The other settings of ``[strategy]`` are its constructor's arguments. ``participation.fraction`` does not apply: the
strategy samples by its own ``fraction_train``. What is not taken:

- ``start``, evaluation and timeouts: rounds, deadlines and the gate are the server's own.
- Any entry of its train config but ``proximal-mu``, which is FedProx' μ at our sites, and ``server-round``. A strategy
  that sends others expects clients that act on them, and is refused.
- Weights other than ``num-examples``: the other metrics are a site's claims.

The strategy sees the changing variables as full parameters (global + update) by their keys, and every update of the
round in memory at once. Python's and NumPy's global random generators are seeded from seed and round while it runs, and
nodes and replies are given in a fixed order, so that the same job gives the same bits.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as Foreign
from numpy.typing import NDArray

from fedretrain.errors import ConfigurationError, FedretrainError, RunFailed
from fedretrain.job import NamedConfig

from . import flower_state
from .fedprox import own_mu
from .flower_class import instantiate
from .flower_grid import PreparedNodes
from .objective import LocalObjective

EXAMPLES = "num-examples"


@dataclass(frozen=True)
class FlowerReply:
    """One admitted reply.

    Args:
        site: Its name; replies are given to the strategy in the order of names.
        node: Its node id.
        update: Difference by variable key, site minus global.
        examples: The admitted example count.
        metrics: The site's claims; those that are finite numbers and that every site of the round made are passed on.
    """

    site: str
    node: int
    update: Mapping[str, NDArray[Any]]
    examples: int
    metrics: Mapping[str, Any]


class FlowerStrategy:
    """Wraps one instance of the named class, which keeps its own state between rounds.

    Args:
        config: ``[strategy]`` of the job.
        local: What sites minimise.
        seed: The job's seed.

    Raises:
        ConfigurationError: The class cannot be imported, is no Flower strategy, or refuses its settings.
    """

    def __init__(self, config: NamedConfig, local: LocalObjective, seed: int = 0) -> None:
        self.name = config.name
        self.local = local
        self.seed = seed
        self.foreign: Foreign = instantiate(config)
        self._mu = own_mu(config)  # what the sites train with on the strategy's account
        self._fresh = dict(vars(self.foreign))
        weighted_by = getattr(self.foreign, "weighted_by_key", EXAMPLES)
        if weighted_by != EXAMPLES:
            raise ConfigurationError(
                f"strategy.weighted_by_key: expected '{EXAMPLES}', the only weight that is checked; got '{weighted_by}'"
            )

    def sample(self, server_round: int, params: dict[str, NDArray[Any]], nodes: list[int], grid: Grid) -> list[int]:
        """The nodes the strategy asks in this round, each once, in the order of ``nodes``.

        Args:
            server_round: From 1.
            params: The global changing variables by key.
            nodes: The prepared nodes, in the order of their sites' names.
            grid: The run's grid; the strategy sees the prepared nodes alone and can send nothing through it.

        Raises:
            RunFailed: It waits for more nodes than are prepared, chooses none, or raises.
            ConfigurationError: It sends sites something they do not act on.
        """
        self._enough(len(nodes))
        config = ConfigRecord()
        with self._running(server_round, "configure_train"):
            view = PreparedNodes(grid, nodes, self.name)
            messages = list(self.foreign.configure_train(server_round, _record(params), config, view))
        chosen = {m.metadata.dst_node_id for m in messages}
        if not chosen or not chosen <= set(nodes):
            raise RunFailed(
                f"strategy {self.name}, round {server_round}: expected some of the prepared nodes, got {chosen or 0}"
            )
        for message in messages:
            self._check_sent(message)
        return [node for node in nodes if node in chosen]

    def aggregate(
        self,
        server_round: int,
        params: dict[str, NDArray[Any]],
        replies: list[FlowerReply],
    ) -> dict[str, NDArray[Any]]:
        """The new global variables, with the keys, shapes and dtypes of ``params``.

        Raises:
            RunFailed: The strategy raises, gives no arrays back, or other or non-finite ones.
        """
        ordered = sorted(replies, key=lambda reply: reply.site)
        claims = _shared_claims(ordered)
        messages = [_message(server_round, params, reply, claims) for reply in ordered]
        with self._running(server_round, "aggregate_train"):
            record, _ = self.foreign.aggregate_train(server_round, messages)
        if record is None:
            raise RunFailed(
                f"strategy {self.name}, round {server_round}: expected arrays from aggregate_train, got none"
            )
        return self._checked(server_round, params, {key: array.numpy() for key, array in record.items()})

    def state(self) -> dict[str, NDArray[Any]]:
        """What the strategy remembers, for a checkpoint (see ``flower_state``)."""
        return flower_state.save(self.foreign, self._fresh)

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Put back what ``state`` gave; raises RunFailed where it is of another strategy."""
        flower_state.restore(self.foreign, state)

    def _enough(self, prepared: int) -> None:
        """Flower waits for these without limit; here the sites are known."""
        for key in ("min_available_nodes", "min_train_nodes"):
            least = getattr(self.foreign, key, 0)
            if isinstance(least, int) and least > prepared:
                raise RunFailed(
                    f"strategy.{key}: expected at least {least} sites, {prepared} prepared; "
                    f"add sites or lower {key} in [strategy]"
                )

    def _check_sent(self, message: Message) -> None:
        for record in message.content.config_records.values():
            unknown = sorted(set(record) - {"server-round", "proximal-mu"})
            if unknown:
                raise ConfigurationError(
                    f"strategy.name: {self.name} sends sites '{unknown[0]}', which they do not act on; "
                    "use one that needs no more than proximal-mu"
                )
            sent = record.get("proximal-mu", 0.0)
            trained = self._mu
            if sent != trained:
                raise ConfigurationError(
                    f"strategy.proximal_mu: expected {sent!r}, which {self.name} sends to sites; got {trained!r}"
                )

    def _checked(
        self,
        server_round: int,
        params: dict[str, NDArray[Any]],
        result: dict[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        where = f"strategy {self.name}, round {server_round}"
        if result.keys() != params.keys():
            raise RunFailed(f"{where}: expected arrays {sorted(params)} from aggregate_train, got {sorted(result)}")
        out: dict[str, NDArray[Any]] = {}
        for key, old in params.items():
            if result[key].shape != old.shape:
                raise RunFailed(f"{where}, array {key}: expected shape {old.shape}, got {result[key].shape}")
            with np.errstate(over="ignore"):
                out[key] = result[key].astype(old.dtype)
            if not np.isfinite(out[key]).all():
                raise RunFailed(f"{where}, array {key}: expected finite values, got NaN or infinity")
        return out

    @contextmanager
    def _running(self, server_round: int, method: str) -> Iterator[None]:
        """Seeds the global generators, puts them back, and lets only our errors out."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what such strategies use
        seed = (self.seed * 1_000_003 + server_round) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        except FedretrainError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            raise RunFailed(
                f"strategy {self.name}, round {server_round}: {method} raised {type(error).__name__}: {reason}"
            ) from error
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _record(params: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value, order="C")) for key, value in params.items()})


def _shared_claims(replies: Iterable[FlowerReply]) -> list[str]:
    """Flower's strategies refuse replies whose metrics have different names."""
    named = [{key for key, value in r.metrics.items() if _is_number(value)} for r in replies]
    return sorted(set.intersection(*named) - {EXAMPLES}) if named else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _message(server_round: int, params: Mapping[str, NDArray[Any]], reply: FlowerReply, claims: list[str]) -> Message:
    """The reply as a client of Flower would have sent it."""
    arrays = {key: np.add(value, reply.update[key], dtype=value.dtype) for key, value in params.items()}
    metrics = MetricRecord({EXAMPLES: reply.examples} | {key: reply.metrics[key] for key in claims})
    asked = Message(RecordDict(), reply.node, MessageType.TRAIN, group_id=str(server_round))
    return Message(RecordDict({"arrays": _record(arrays), "metrics": metrics}), reply_to=asked)
