"""Staged unfreezing: what trains in a round, and that a stage is the job it would be on its own."""

from typing import Any

import numpy as np
import pytest

from client.stages import stage_of, staged
from client.trainer import Order, Trainer
from fedretrain.job import StageSection, TrainSection

from .parts import Case, case, classifier, examples

STAGES = (StageSection(rounds=2, freeze=("base",)), StageSection(rounds=1, learning_rate=0.05), StageSection(rounds=3))


def test_the_round_alone_says_which_stage_it_is_in() -> None:
    """From 1 on; none outside rounds, and none where the job has no stages."""
    train = TrainSection(rounds=6, stages=STAGES)
    assert [stage_of(train, round_) for round_ in range(8)] == [None, 0, 0, 1, 2, 2, 2, None]
    assert stage_of(TrainSection(), 1) is None


@pytest.mark.usefixtures("tensorflow")
def test_a_stage_trains_what_a_job_of_its_own_would() -> None:
    """Bit for bit, by one trainer that goes from stage to stage and back; what a stage freezes does not move."""

    def updates(of: Case, trainer: Trainer, round_: int) -> list[np.ndarray]:
        result = trainer.train(Order(of.request, "a", round_), lambda: of.base, of.received, examples(of, 40))
        return [np.asarray(array) for array in result.update]

    def as_bytes(update: Any) -> list[bytes]:
        return [np.asarray(array).tobytes() for array in update]

    warm = Trainer()
    in_stages, plain = case(classifier(), rounds=6, stages=STAGES), case(classifier(), rounds=6)
    first, second, third = (updates(in_stages, warm, round_) for round_ in (1, 3, 4))
    assert not any(array.any() for array in first[:2])
    assert as_bytes(first[2:]) == as_bytes(updates(case(classifier(), freeze=("base",), rounds=6), Trainer(), 1))
    assert as_bytes(third) == as_bytes(updates(plain, Trainer(), 4))
    assert second[0].any()
    halved = staged(in_stages.request, 1)
    assert halved.train.optimizer is not None
    assert halved.train.optimizer.settings["learning_rate"] == 0.05
    own = case(classifier(), rounds=6, optimizer=halved.train.optimizer)
    assert as_bytes(second) == as_bytes(updates(own, Trainer(), 3))
    assert as_bytes(first) == as_bytes(updates(in_stages, warm, 1))
