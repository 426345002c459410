"""A Flower task identity: messages can only be made inside a run."""

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
