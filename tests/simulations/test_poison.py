"""Poisons spoil the update and nothing else, so that only their own rule can catch them."""

import json

import numpy as np
import pytest
from flwr.app import RecordDict

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError
from fedretrain.messages import PrepareReply, TrainReply, pack
from simulations.poison import poisoned

UPDATE = {
    "00002": np.array([[1.0, -2.0], [0.5, 0.0]], np.float32),
    "00005": np.array([3.0], np.float16),
}


def reply() -> RecordDict:
    body = TrainReply(
        run="r1", round=3, site="a", contract="c", globals_digest="g", update_digest=weights_digest(UPDATE.values())
    )
    return pack(body, UPDATE, {"num-examples": 40, "accuracy": 0.5})


def arrays(content: RecordDict) -> list[np.ndarray]:
    return [a.numpy() for a in content.array_records["arrays"].values()]


def body(content: RecordDict) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(str(content.config_records["body"]["json"]))
    return parsed


def test_scale_multiplies_the_update() -> None:
    """A thousand times the update, in its own dtype: [[1, -2], [0.5, 0]] becomes [[1000, -2000], [500, 0]]."""
    spoilt = arrays(poisoned("scale", reply()))
    np.testing.assert_array_equal(spoilt[0], np.array([[1000, -2000], [500, 0]], np.float32))
    assert [a.dtype for a in spoilt] == [np.float32, np.float16]


def test_nan_puts_one_nan_into_the_update() -> None:
    """One number of the whole update is NaN, the others are as they were."""
    spoilt = arrays(poisoned("nan", reply()))
    assert sum(int(np.isnan(a).sum()) for a in spoilt) == 1
    np.testing.assert_array_equal(spoilt[1], UPDATE["00005"])


@pytest.mark.parametrize("kind", ["scale", "nan"])
def test_everything_around_the_update_is_right(kind: str) -> None:
    """Site, round, contract, keys and metrics stay; the digest is that of the spoilt arrays."""
    before, after = reply(), poisoned(kind, reply())
    changed = {k for k in body(before) if body(before)[k] != body(after)[k]}
    assert changed == {"update_digest"}
    assert body(after)["update_digest"] == weights_digest(arrays(after))
    assert list(after.array_records["arrays"]) == list(UPDATE)
    assert after.metric_records["metrics"] == before.metric_records["metrics"]
    np.testing.assert_array_equal(arrays(before)[0], UPDATE["00002"])


def test_other_replies_stay_as_they_are() -> None:
    """Only training can be poisoned: the answer to ``prepare`` is untouched."""
    prepared = pack(
        PrepareReply(run="r1", site="a", contract="c", train_examples=9, validation_examples=1, needs_base=True)
    )
    assert poisoned("nan", prepared) is prepared


def test_an_unknown_poison_is_refused() -> None:
    """The message names the kinds there are."""
    with pytest.raises(ConfigurationError, match="expected one of nan, scale, got 'labels'"):
        poisoned("labels", reply())
