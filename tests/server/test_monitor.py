"""The monitor: measures while the next round trains, writes down what it read, ends a run that is good enough."""

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import MonitorSection, TrainSection, load_job
from server.checkpoint import Checkpoint
from server.events import EventLog
from server.monitor import Watching
from server.rounds import Rounds
from server.yardstick import Reading, check_target

from .grid import NumpySite, pull_towards
from .keras_job import make_job, start
from .parts import Loop, bits


class Tape:
    """A yardstick that knows the readings beforehand, one after the other."""

    metric = "accuracy"

    def __init__(self, *readings: float | Exception, wait: Callable[[int], None] = lambda _: None) -> None:
        self.seen: list[bytes] = []
        self._readings = readings
        self._wait = wait

    def read(self, params: list[Any], **_: Any) -> Reading:
        self.seen.append(b"".join(a.tobytes() for a in params))
        self._wait(len(self.seen))
        value = self._readings[min(len(self.seen), len(self._readings)) - 1]
        if isinstance(value, Exception):
            raise value
        return Reading(1 - value, {"accuracy": value})


def watched(loop: Loop, tape: Tape, **section: Any) -> Checkpoint:
    """A start of the loop with a monitor."""
    emit = EventLog(loop.folder, loop._take)
    of = MonitorSection(path=Path("monitor.npz"), **section)
    monitor = Watching(of, loop.plan.train.rounds, tape, emit, loop.folder.read_events())  # type: ignore[arg-type]
    try:
        return Rounds(loop.plan, loop.grid, loop.folder, emit, loop.messenger, monitor).run()
    finally:
        monitor.close()


def loop(out: Path, rounds: int, update: Any = None) -> Loop:
    return Loop(out, [NumpySite(name, 10, update or pull_towards(1.0)) for name in "ab"], rounds=rounds)


def test_a_round_trains_while_the_one_before_is_measured(tmp_path: Path) -> None:
    """Measuring round n ends only when a site has trained in round n + 1, and no bit of the training is another."""
    trained = [threading.Event() for _ in range(4)]

    def update(number: int, params: list[Any]) -> list[Any]:
        trained[number].set()
        return pull_towards(1.0)(number, params)

    def wait(reading: int) -> None:
        number = reading - 1
        assert number == 3 or trained[number + 1].wait(20)

    run = loop(tmp_path / "watched", 3, update)
    tape = Tape(0.5, wait=wait)
    assert bits(watched(run, tape)) == bits(loop(tmp_path / "alone", 3).run()) == tape.seen[-1]
    assert [(e["event"], e["round"]) for e in run.events if e["event"] in {"monitored", "checkpoint"}] == [
        ("monitored", 0), ("checkpoint", 1), ("monitored", 1), ("checkpoint", 2), ("monitored", 2), ("checkpoint", 3),
        ("monitored", 3),
    ]  # fmt: skip


def test_a_run_ends_with_the_model_that_reached_the_target(tmp_path: Path) -> None:
    """The round that trained meanwhile is dropped; the model in use reaches nothing; a resumed run trains no more."""
    run, tape = loop(tmp_path / "watched", 5), Tape(0.9, 0.5, 0.8, 0.95)
    state = watched(run, tape, stop_at=0.8)
    assert (state.round, bits(state)) == (2, bits(loop(tmp_path / "alone", 2).run()))
    assert [e["round"] for e in run.named("checkpoint")] == [1, 2]
    reached = {"event": "target-reached", "round": 2, "metric": "accuracy", "value": 0.8, "target": 0.8}
    assert run.named("target-reached") == [reached]
    asked = len(run.grid.sent)
    again = watched(run, tape, stop_at=0.8)
    assert (again.round, bits(again), len(run.grid.sent)) == (2, bits(state), asked)


def test_only_the_last_reading_can_be_missing_after_a_crash(tmp_path: Path) -> None:
    """A start that died before it read round 2 is followed by one that measures that round, and no other, again."""
    run = loop(tmp_path, 2)
    died = Tape(0.5, 0.6, RuntimeError("as if killed"))
    watched(run, died)
    assert [e["round"] for e in run.named("monitored")] == [0, 1]
    resumed = Tape(0.7)
    state = watched(run, resumed)
    assert resumed.seen == [bits(state)]
    assert [(e["round"], e["metrics"]) for e in run.named("monitored")][2:] == [(2, {"accuracy": 0.7})]


def test_measuring_that_fails_is_a_warning(tmp_path: Path) -> None:
    """The run goes on, and the next measured round is measured."""
    run = loop(tmp_path, 4)
    assert watched(run, Tape(0.5, RuntimeError("no\nmemory"), 0.6), every=2).round == 4
    assert [e["round"] for e in run.named("monitored")] == [0, 4]
    assert [e["text"] for e in run.named("warning")] == ["round 2 could not be monitored: RuntimeError: no memory"]


def job_with(folder: Path, **monitor: Any) -> Path:
    """The Keras job, watched on data with weights that are not its holdouts'."""
    rows = "\n".join(f"{key} = {json.dumps(value)}" for key, value in monitor.items())
    job = make_job(folder, more=f'[monitor]\npath = "monitor.npz"\n{rows}\n')
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1500, 4)).astype(np.float32)
    weight = np.where(np.arange(1500) % 3 == 0, 0, 1 + x[:, 0] ** 2).astype(np.float32)
    np.savez(folder / "monitor.npz", x=x, y=(x[:, 0] > 0).astype(int), sample_weight=weight)
    return job


@pytest.mark.parametrize("metric", ["accuracy", "auc", "loss"])
def test_what_is_read_is_what_keras_and_scikit_learn_say(metric: str, tmp_path: Path) -> None:
    """Loss and metric of the last round, weighted, are those of the released model; they stand in the result."""
    import keras
    from sklearn.metrics import roc_auc_score

    result = start(job_with(tmp_path / "job", metric=metric), tmp_path)
    assert [entry["round"] for entry in result["monitor"]] == [0, 1, 2]
    data = np.load(tmp_path / "job" / "monitor.npz")
    x, y, weight = data["x"], data["y"], data["sample_weight"]
    release = tmp_path / "registry" / "releases" / result["release"]
    prediction = keras.models.load_model(release / "model.keras").predict(x, verbose=0)
    loss = np.average(keras.losses.sparse_categorical_crossentropy(y, prediction), weights=weight)
    expected = {
        "accuracy": np.average(prediction.argmax(1) == y, weights=weight),
        "auc": roc_auc_score(y, prediction[:, 1], sample_weight=weight),
    }
    last = result["monitor"][-1]
    assert last["loss"] == pytest.approx(loss, rel=1e-5)
    assert last["metrics"] == ({} if metric == "loss" else {metric: pytest.approx(expected[metric], rel=1e-5)})


def test_watching_a_holdout_that_decides_is_warned_of(tmp_path: Path) -> None:
    """The same examples under another name: a warning that names the holdout, before the first round."""
    job = make_job(tmp_path / "job", more='[monitor]\npath = "same.npz"\n', rounds=1)
    (tmp_path / "job" / "same.npz").write_bytes((tmp_path / "job" / "new.npz").read_bytes())
    events: list[dict[str, Any]] = []
    start(job, tmp_path, on_event=events.append)
    assert events[0]["event"] == "warning"
    assert "the data of holdout 'new', which decides" in events[0]["text"]


def test_data_that_do_not_fit_are_said_before_the_first_round(tmp_path: Path) -> None:
    """As with a holdout: the file, and what the contract asks for."""
    job = job_with(tmp_path / "job")
    np.savez(tmp_path / "job" / "monitor.npz", x=np.zeros((5, 3), np.float32), y=np.zeros(5, int))
    with pytest.raises(ConfigurationError, match=r"holdout 'monitor': .*monitor.npz: .*shape"):
        start(job, tmp_path)
    assert not (tmp_path / "registry").exists()


def test_a_target_beyond_the_settled_metric_is_refused(tmp_path: Path) -> None:
    """Where the job's first metric is accuracy, no model comes to 95."""
    with pytest.raises(ConfigurationError, match=r"^monitor.stop_at: expected above 0 and at most 1.*, got 95$"):
        start(job_with(tmp_path / "job", stop_at=95), tmp_path)


@pytest.mark.parametrize(
    ("loss", "possible"),
    [
        ("sparse_categorical_crossentropy", False),
        ({"name": "mse"}, False),
        ("cosine_similarity", True),
        ({"name": "Poisson"}, True),
    ],
)
def test_a_loss_below_zero_is_a_target_where_there_is_one(loss: Any, possible: bool) -> None:
    """Few of Keras' losses go there."""
    train = TrainSection.model_validate({"loss": loss})
    with nullcontext() if possible else pytest.raises(ConfigurationError, match="expected 0 or more"):
        check_target("loss", -0.5, train)
    check_target("loss", 0.0, train)


def test_where_a_watched_job_lies_is_not_part_of_it(tmp_path: Path) -> None:
    """Two folders, one digest; another target is another job."""
    one, two, other = (job_with(tmp_path / name, stop_at=at) for name, at in (("1", 0.5), ("2", 0.5), ("3", 0.6)))
    assert load_job(one).digest == load_job(two).digest != load_job(other).digest
