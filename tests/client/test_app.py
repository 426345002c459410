"""The ClientApp as Flower's simulation runtime calls it: messages in, messages out, one site per partition."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedretrain.contract import keys
from fedretrain.digest import weights_digest
from fedretrain.job import Job, NamedConfig
from fedretrain.messages import BASE, COMPANION, PREPARE, SUM, TRAIN, CompanionRequest, SumRequest, pack
from fedretrain.runfolder import RunFolder

from .parts import Case, body, raw

pytestmark = pytest.mark.usefixtures("tensorflow")


def folder(of: Case, out: Path) -> RunFolder:
    """A run with the sites "b", "a" and "c" of 60, 70 and 80 examples."""
    for name, count in (("b", 60), ("a", 70), ("c", 80)):
        np.savez(out / f"{name}.npz", **raw(of, count))
    job = {
        "model": {"path": str(out / "base.keras")},
        "holdout": [{"name": "old", "path": str(out / "a.npz")}],
        "simulation": {"sites": str(out / "*.npz")},
    }
    return RunFolder.create(out, of.request.run, Job.model_validate_json(json.dumps(job)))


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made in the name of the task that Flower says this process is."""
    for attribute in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, attribute, 1)


def ask(run: str, partition: Any, kind: str, content: RecordDict) -> Message:
    from client.app import app

    context = Context(1, 2, {"partition-id": partition}, RecordDict(), {"run": run})
    return app(Message(content, dst_node_id=2, message_type=kind), context)


def test_a_partition_is_a_site_by_the_order_of_names(of: Case, tmp_path: Path) -> None:
    """Prepared, given the base model and trained through the app, as the site whose turn it is."""
    run = str(folder(of, tmp_path).root)
    counts = [body(ask(run, i, PREPARE, pack(of.request)).content)["train_examples"] for i in range(3)]
    assert counts == [63, 54, 72]
    assert body(ask(run, 1, BASE, of.base_message()).content)["kind"] == "base"
    reply = ask(run, 1, TRAIN, of.train_message())
    assert reply.metadata.message_type == TRAIN
    assert (body(reply.content)["kind"], body(reply.content)["site"]) == ("train", "b")


def test_sums_and_companions_are_asked_of_a_site_too(of: Case, tmp_path: Path) -> None:
    """Flower's runtime takes our message types for them, and the app answers as the site does."""
    run = str(folder(of, tmp_path).root)
    ask(run, 1, PREPARE, pack(of.request))
    ask(run, 1, BASE, of.base_message())
    named = dict(zip(keys(of.contract.changing), of.received, strict=True))
    digest = weights_digest(of.received)
    about = {"run": of.request.run, "contract": of.contract.digest, "globals_digest": digest}
    wanted = SumRequest.model_validate({**about, "sum": NamedConfig(name="evaluation")})
    answer = ask(run, 1, SUM, pack(wanted, named)).content
    assert (body(answer)["sum"], answer.metric_records["metrics"]["num-examples"]) == ("evaluation", 6)
    brought = ask(run, 1, COMPANION, pack(CompanionRequest(run=of.request.run, companion=digest), named))
    assert body(brought.content)["companion"] == digest


def test_one_trainer_and_one_store_serve_all_sites(of: Case, tmp_path: Path) -> None:
    """The base model that one simulated site received is there for the others."""
    run = str(folder(of, tmp_path).root)
    ask(run, 0, PREPARE, pack(of.request))
    ask(run, 0, BASE, of.base_message())
    assert body(ask(run, 2, PREPARE, pack(of.request)).content)["needs_base"] is False


@pytest.mark.parametrize(("run", "partition"), [("", 0), ("no/such/run", 0), (None, 99), (None, "x")])
def test_a_run_or_site_that_is_not_there_is_an_answer_too(
    run: str | None, partition: Any, of: Case, tmp_path: Path
) -> None:
    """No exception reaches Flower, which would send its text to the server."""
    run = str(folder(of, tmp_path).root) if run is None else run
    found = body(ask(run, partition, PREPARE, pack(of.request)).content)
    assert (found["code"], found["site"]) == ("site-failure", "")


def test_what_flower_sends_to_an_actor_finds_the_warm_trainer(of: Case, tmp_path: Path) -> None:
    """Flower pickles the app for each message; it goes by name, so sites and trainer of this module serve them all."""
    from ray import cloudpickle

    from client import app as module

    app, run = module.app, str(folder(of, tmp_path).root)
    before = module._site.cache_info()
    for _ in range(2):
        delivered = cloudpickle.loads(cloudpickle.dumps(lambda: app))()
        context = Context(1, 2, {"partition-id": 0}, RecordDict(), {"run": run})
        delivered(Message(pack(of.request), dst_node_id=2, message_type=PREPARE), context)
    after = module._site.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
