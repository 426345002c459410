"""The gate's verdicts: rules, slices, what is too small, and real Keras models end to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedretrain.job import HoldoutSection, parse_job
from server.gate import GateReport, HoldoutVerdict, judge, judge_scores, report
from server.holdouts import holdout_digest, load_holdouts
from server.scores import Scores

Arrays = list[NDArray[Any]]


def section(**settings: Any) -> HoldoutSection:
    return HoldoutSection.model_validate({"name": "old", "path": Path("old.npz"), **settings})


def accuracy(n: int, lost: int = 0, gained: int = 0, wrong: int = 0, **fields: Any) -> Scores:
    """n examples: first those only the incumbent has right, then only the candidate, then neither."""
    rows = np.arange(n)
    incumbent = (rows < lost) | (rows >= lost + gained + wrong)
    candidate = (rows >= lost) & (rows < lost + gained) | (rows >= lost + gained + wrong)
    return Scores("accuracy", incumbent.astype(float), candidate.astype(float), single=True, **fields)


def losses(incumbent: NDArray[Any], candidate: NDArray[Any], **fields: Any) -> Scores:
    return Scores("loss", -np.asarray(incumbent, float), -np.asarray(candidate, float), **fields)


def test_no_disagreement_on_500_examples_passes() -> None:
    """n = 500, margin 0.01: the bound is -2.7055 / 502.7055 = -0.00538."""
    verdict = judge_scores(section(), accuracy(500, wrong=50))
    assert (verdict.passed, verdict.decided, verdict.reason) == (True, "passed", "")
    assert (verdict.incumbent, verdict.candidate, verdict.difference) == (0.9, 0.9, 0.0)
    assert verdict.lower_bound == pytest.approx(-0.00538, abs=1e-5)


def test_no_disagreement_on_50_examples_is_too_small() -> None:
    """n = 50, margin 0.01: agreement of 268 examples would do, which the sentence says."""
    verdict = judge_scores(section(), accuracy(50, wrong=5))
    assert (verdict.passed, verdict.decided, verdict.needed_n) == (False, "too small", 268)
    assert verdict.reason == (
        "holdout 'old' has 50 examples; about 268 are needed to show a loss of at most 0.01 at this disagreement"
    )


def test_too_small_names_the_examples_that_disagreement_asks_for() -> None:
    """2 of 120 disagree: 6.183 x (2/120) / 0.01^2 = 1031 examples."""
    verdict = judge_scores(section(), accuracy(120, lost=1, gained=1))
    assert (verdict.decided, verdict.needed_n) == ("too small", 1031)
    assert verdict.discordance == pytest.approx(2 / 120)


def test_a_clear_loss_on_few_examples_has_failed() -> None:
    """40 of 100 lost is no question of size: even the upper bound is below the margin."""
    verdict = judge_scores(section(), accuracy(100, lost=40))
    assert (verdict.decided, verdict.passed) == ("failed", False)
    assert verdict.reason.startswith(
        "holdout 'old': accuracy 1 -> 0.6 on 100 examples; lower bound of the difference -0"
    )
    assert verdict.reason.endswith("expected above -0.01")


def test_a_loss_on_many_examples_has_failed() -> None:
    """With as many examples as the disagreement asks for, not shown is failed."""
    verdict = judge_scores(section(margin=0.02), accuracy(5000, lost=150, gained=60))
    assert verdict.needed_n is not None
    assert verdict.needed_n < 5000
    assert verdict.decided == "failed"


def test_improve_asks_for_a_gain_that_is_certain() -> None:
    """30 gained and 5 lost of 500 is an improvement; 12 and 8 is not shown, and the size that would show it is said."""
    improve = section(must="improve")
    assert judge_scores(improve, accuracy(500, gained=30, lost=5)).passed
    unsure = judge_scores(improve, accuracy(500, gained=12, lost=8))
    assert (unsure.decided, unsure.needed_n) == ("too small", 3865)  # 6.183 x 0.04 / 0.008^2
    assert "a gain above 0 where it is as large as here" in unsure.reason


def test_improve_without_any_gain_has_failed() -> None:
    """No number of examples shows a gain that is not there."""
    verdict = judge_scores(section(must="improve"), accuracy(500, gained=5, lost=5))
    assert (verdict.decided, verdict.needed_n) == ("failed", None)
    assert verdict.reason.endswith("expected above 0")


def test_an_asked_gain_is_the_threshold() -> None:
    """5 points gained pass where 1 point is asked and not where 4 are."""
    scores = accuracy(500, gained=30, lost=5)
    assert judge_scores(section(must="improve", margin=0.01), scores).passed
    assert not judge_scores(section(must="improve", margin=0.04), scores).passed


def test_a_failing_slice_refuses_though_the_holdout_passes() -> None:
    """All of 30 losses are in one slice of 300; 3000 examples as a whole are better."""
    slices = np.array(["day"] * 2700 + ["night"] * 300)
    candidate = np.ones(3000)
    candidate[2700:2730] = 0
    incumbent = np.ones(3000)
    incumbent[:100] = 0
    scores = Scores("accuracy", incumbent, candidate, single=True, slices=slices)
    verdict = judge_scores(section(), scores)
    assert verdict.passed
    assert [(s.name, s.n, s.passed) for s in verdict.slices] == [("day", 2700, True), ("night", 300, False)]
    whole = report([verdict])
    assert not whole.passed
    assert len(whole.reasons) == 1
    assert whole.reasons[0].startswith("holdout 'old', slice 'night': accuracy 1 -> 0.9 on 300 examples")


def test_rows_without_a_slice_belong_to_the_holdout_only() -> None:
    """An empty text names no slice."""
    verdict = judge_scores(section(), accuracy(600, slices=np.array([""] * 300 + ["a"] * 300)))
    assert [s.name for s in verdict.slices] == ["a"]
    assert verdict.n == 600


def test_all_holdouts_must_pass() -> None:
    """One passing and one failing holdout are a refusal with the failing one's sentence."""
    good = judge_scores(section(), accuracy(1000))
    bad = judge_scores(section(name="new", must="improve"), accuracy(1000))
    refused = report([good, bad])
    assert not refused.passed
    assert refused.reasons == (bad.reason,)
    assert report([good]) == GateReport(passed=True, holdouts=(good,))
    assert not report([]).passed


def test_loss_is_shown_as_loss_and_compared_as_gain() -> None:
    """Loss 2.0 to 1.5 is a difference of +0.5."""
    noise = np.tile([-0.1, 0.1], 50)
    verdict = judge_scores(section(must="improve"), losses(2 + noise, 1.5 + 0 * noise))
    assert (verdict.metric, verdict.passed) == ("loss", True)
    assert (verdict.incumbent, verdict.candidate) == pytest.approx((2.0, 1.5))
    assert verdict.difference == pytest.approx(0.5)
    worse = judge_scores(section(), losses(1.5 + 0 * noise, 2 + noise))
    assert worse.decided == "failed"
    assert "loss 1.5 -> 2 on 100 examples" in worse.reason


def test_fewer_than_ten_losses_are_too_small() -> None:
    """Nine equal losses support no bound, and that is said."""
    verdict = judge_scores(section(), losses(np.ones(9), np.ones(9)))
    assert (verdict.decided, verdict.lower_bound, verdict.needed_n) == ("too small", None, 10)
    assert (
        verdict.reason == "holdout 'old' has 9 examples; a bound takes 10 of like weight, about 10 examples like these"
    )


def test_auc_of_constant_labels_is_too_small() -> None:
    """Without both labels there is no area; the report stays JSON."""
    ranks = np.arange(100.0)
    verdict = judge_scores(section(), Scores("auc", ranks, ranks, labels=np.ones(100, bool)))
    assert (verdict.decided, verdict.incumbent, verdict.needed_n) == ("too small", None, None)
    assert verdict.reason == "holdout 'old' has 100 examples; AUC takes examples of both labels"
    json.dumps(report([verdict]).as_dict(), allow_nan=False)


def test_equal_rankings_of_few_positives_are_too_small() -> None:
    """20 positives that both models rank alike: 268 positives would do, so 268 x 200 / 20 examples like these."""
    ranks = np.arange(200.0)
    verdict = judge_scores(section(), Scores("auc", ranks, ranks, labels=ranks >= 180))
    assert (verdict.decided, verdict.needed_n) == ("too small", 2680)


def test_auc_compares_rankings() -> None:
    """A candidate that ranks at random after a good incumbent is refused."""
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.3
    good, random = rng.normal(2.0 * labels), rng.normal(size=400)
    assert judge_scores(section(must="improve"), Scores("auc", random, good, labels=labels)).passed
    refused = judge_scores(section(), Scores("auc", good, random, labels=labels))
    assert refused.decided == "failed"
    assert refused.incumbent is not None
    assert refused.incumbent > 0.85


@pytest.mark.parametrize("who", ["candidate", "incumbent"])
def test_scores_that_are_no_numbers_refuse(who: str) -> None:
    """NaN from either model is a refusal that says whose and how many, also in slices."""
    pair = {"incumbent": np.ones(500), "candidate": np.ones(500)}
    pair[who][:3] = np.nan
    scores = Scores("accuracy", **pair, single=True, slices=np.array(["a"] * 100 + ["b"] * 400))
    verdict = judge_scores(section(), scores)
    assert (verdict.decided, verdict.lower_bound, verdict.candidate) == ("failed", None, None)
    assert verdict.reason == f"holdout 'old': predictions or losses of the {who} are not finite for 3 of 500 examples"
    assert [s.passed for s in verdict.slices] == [False, True]


def test_examples_of_weight_zero_do_not_count() -> None:
    """300 examples lost at weight 0 have no say, and n is what counts."""
    weights = np.r_[np.zeros(300), np.ones(700)]
    verdict = judge_scores(section(), accuracy(1000, lost=300, weights=weights))
    assert (verdict.passed, verdict.n, verdict.candidate) == (True, 700, 1.0)
    slices = np.array(["none"] * 300 + ["all"] * 700)
    none = judge_scores(section(), accuracy(1000, lost=300, weights=weights, slices=slices)).slices[1]
    assert (none.name, none.n, none.decided) == ("none", 0, "too small")


def test_weights_change_the_verdict() -> None:
    """Ten lost examples of 1000 pass a margin of 3 points unless they weigh ten times as much."""
    weights = np.ones(1000)
    assert judge_scores(section(margin=0.03), accuracy(1000, lost=10, weights=weights)).passed
    weights[:10] = 10.0
    heavy = judge_scores(section(margin=0.03), accuracy(1000, lost=10, weights=weights))
    assert not heavy.passed
    assert heavy.difference == pytest.approx(-100 / 1090)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(20, 400),
    metric=st.sampled_from(["accuracy", "loss", "auc"]),
    margins=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
)
def test_a_wider_margin_never_refuses_what_passed(seed: int, n: int, metric: str, margins: tuple[float, float]) -> None:
    """not-worse is monotone in its margin, for every metric."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(0.1, size=n)
    if metric == "accuracy":
        a, b = (a > -1) * 1.0, (b > -1) * 1.0
    labels = rng.random(n) < 0.5
    scores = Scores(metric, a, b, single=metric == "accuracy", labels=labels if metric == "auc" else None)  # type: ignore[arg-type]
    narrow, wide = (judge_scores(section(margin=m), scores) for m in sorted(margins))
    assert wide.passed or not narrow.passed
    assert narrow.lower_bound == wide.lower_bound


def test_report_is_json_with_the_evidence() -> None:
    """as_dict has plain lists and numbers, slices and uses included, and survives JSON unchanged."""
    verdict = judge_scores(section(), accuracy(600, slices=np.array(["a", "b"] * 300)), uses=4)
    assert isinstance(verdict, HoldoutVerdict)
    found = report([verdict], ["candidate: variable 3 has values that are not finite"]).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["passed"], found["confidence"]) == (False, 0.95)
    assert found["holdouts"][0]["uses"] == 4
    assert [s["name"] for s in found["holdouts"][0]["slices"]] == ["a", "b"]


class Real:
    """A small Keras model with two inputs' worth of signal, its holdout on disk, and everything ``judge`` takes."""

    def __init__(self, folder: Path, model: Any, arrays: dict[str, Any], **settings: Any) -> None:
        from fedretrain.architecture import to_json, weights_of
        from fedretrain.derive import derive_contract
        from fedretrain.modelfile import BaseModel
        from fedretrain.settings import resolve_train

        (folder / "base.keras").touch()
        np.savez(folder / "old.npz", **arrays)
        train = settings.pop("train")
        raw = {
            "model": {"path": "base.keras"},
            "train": {"optimizer": {"name": "sgd"}, **train},
            "holdout": [{"name": "old", "path": "old.npz", **settings}],
        }
        self.job = parse_job(raw, folder / "job.toml")
        self.base = BaseModel(architecture=to_json(model), weights=weights_of(model), compile_config=None)
        self.train = resolve_train(self.job.train, None)
        self.contract = derive_contract(self.job, self.base, self.train)

    def judge(self, candidate: Arrays, **settings: Any) -> GateReport:
        model = replace(self.base, weights=candidate)
        return judge(self.job, self.contract, self.train, self.base, model, **settings)

    def flipped(self) -> Arrays:
        """A candidate whose last layer's kernel and bias have the other sign."""
        return [*self.base.weights[:-2], *(-w for w in self.base.weights[-2:])]


def dense(units: int, activation: str | None, weights: Arrays, inputs: int = 4) -> Any:
    import keras

    model = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units, activation=activation)])
    model.set_weights(weights)
    return model


def features(n: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def test_a_multiclass_model_is_judged_by_its_accuracy(tmp_path: Path) -> None:
    """The incumbent against itself passes, its sign-flipped self is refused; scores are those of argmax by hand."""
    x = features(700)
    kernel = np.eye(4, 3, dtype=np.float32) * 4
    y = x[:, :3].argmax(1)
    y[:70] = (y[:70] + 1) % 3
    real = Real(
        tmp_path,
        dense(3, "softmax", [kernel, np.zeros(3, np.float32)]),
        {"x": x, "y": y, "slice": np.array(["a", "b"] * 350)},
        train={"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
    )
    same = real.judge(real.base.weights)
    assert same.passed
    assert same == real.judge(real.base.weights)
    assert same.holdouts[0].metric == "accuracy"
    assert same.holdouts[0].incumbent == pytest.approx(0.9)
    assert same.holdouts[0].difference == 0.0
    flipped = real.judge(real.flipped())
    assert not flipped.passed
    assert flipped.holdouts[0].candidate == pytest.approx(np.mean((-x[:, :3]).argmax(1) == y))
    assert [s.decided for s in flipped.holdouts[0].slices] == ["failed", "failed"]
    assert len(flipped.reasons) == 3


def test_a_candidate_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """One NaN in a kernel: every prediction with it is counted and the variable named."""
    real = Real(
        tmp_path,
        dense(1, "sigmoid", [np.ones((4, 1), np.float32), np.zeros(1, np.float32)]),
        {"x": features(500), "y": np.arange(500) % 2},
        train={"loss": "binary_crossentropy", "metrics": ["accuracy"]},
    )
    broken = [w.copy() for w in real.base.weights]
    broken[0][2, 0] = np.nan
    refused = real.judge(broken)
    assert refused.reasons == (
        "candidate: variable 0 has values that are not finite",
        "holdout 'old': predictions or losses of the candidate are not finite for 500 of 500 examples",
    )
    json.dumps(refused.as_dict(), allow_nan=False)


@pytest.mark.parametrize("column", [False, True])
def test_a_binary_model_is_judged_by_auc_and_accuracy(tmp_path: Path, column: bool) -> None:
    """Labels [n] and [n, 1] are the same holdout to the metric; area and accuracy by hand."""
    x = features(600)
    probability = 1 / (1 + np.exp(-2 * x[:, 0]))
    y = (np.random.default_rng(1).random(600) < probability) * 1
    real = Real(
        tmp_path,
        dense(1, "sigmoid", [np.array([[2], [0], [0], [0]], np.float32), np.zeros(1, np.float32)]),
        {"x": x, "y": y[:, None] if column else y},
        train={"loss": "binary_crossentropy", "metrics": ["auc"]},
    )
    positive, negative = x[y == 1, 0][:, None], x[y == 0, 0][None, :]
    refused = real.judge(real.flipped()).holdouts[0]
    assert refused.metric == "auc"
    assert refused.incumbent == pytest.approx((positive > negative).mean())
    assert refused.candidate == pytest.approx(1 - (positive > negative).mean())
    assert refused.decided == "failed"
    by_accuracy = real.job.holdout[0].model_copy(update={"metric": "accuracy"})
    real.job = real.job.model_copy(update={"holdout": (by_accuracy,)})
    accurate = real.judge(real.base.weights).holdouts[0]
    assert accurate.incumbent == pytest.approx(np.mean((probability > 0.5) == y))


def test_a_regression_is_judged_by_its_own_loss(tmp_path: Path) -> None:
    """The job's Huber loss with its delta, per example; a candidate nearer to the truth improves."""
    x = features(400)
    y = x[:, :1] * 3
    real = Real(
        tmp_path,
        dense(1, None, [np.array([[2], [0], [0], [0]], np.float32), np.zeros(1, np.float32)]),
        {"x": x, "y": y, "sample_weight": np.linspace(0.5, 2, 400)},
        train={"loss": {"name": "huber", "delta": 0.5}},
        must="improve",
    )
    better = real.judge([np.array([[3], [0], [0], [0]], np.float32), np.zeros(1, np.float32)])
    error = np.abs(x[:, 0])
    huber = np.where(error <= 0.5, error**2 / 2, 0.5 * error - 0.125)
    assert better.passed
    assert better.holdouts[0].metric == "loss"
    assert better.holdouts[0].incumbent == pytest.approx(np.average(huber, weights=np.linspace(0.5, 2, 400)), rel=1e-4)
    assert better.holdouts[0].candidate == pytest.approx(0, abs=1e-6)
    assert not real.judge(real.flipped()).passed


def two_headed() -> Any:
    import keras

    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    label = keras.layers.Dense(3, activation="softmax", name="label")(both)
    dose = keras.layers.Dense(1, name="dose")(both)
    return keras.Model({"left": left, "right": right}, {"label": label, "dose": dose})


@pytest.mark.parametrize("output", [None, "dose", "label"])
def test_one_output_of_several_or_the_sum_of_losses_is_judged(tmp_path: Path, output: str | None) -> None:
    """A candidate that spoils the dose alone is refused by the sum and by "dose", and passes by "label"."""
    left, right = features(500), features(500, 1)[:, :2]
    model = two_headed()
    arrays = {"x.left": left, "x.right": right, "y.label": left[:, :3].argmax(1), "y.dose": right[:, :1]}
    real = Real(
        tmp_path,
        model,
        arrays,
        train={
            "loss": {"label": "sparse_categorical_crossentropy", "dose": "mean_squared_error"},
            "metrics": ["accuracy"],
        },
        **({"output": output} if output else {}),
    )
    spoiled = [w.copy() for w in real.base.weights]
    position = next(i for i, v in enumerate(model.variables) if v.shape == (1,))
    spoiled[position] += 100
    verdict = real.judge(spoiled).holdouts[0]
    assert verdict.metric == ("accuracy" if output == "label" else "loss")
    assert verdict.passed == (output == "label")
    assert real.judge(real.base.weights).passed


def test_uses_are_reported_by_content(tmp_path: Path) -> None:
    """The count of a holdout's digest stands in its verdict."""
    real = Real(
        tmp_path,
        dense(1, "sigmoid", [np.ones((4, 1), np.float32), np.zeros(1, np.float32)]),
        {"x": features(300), "y": np.arange(300) % 2},
        train={"loss": "binary_crossentropy", "metrics": ["accuracy"]},
    )
    ((_, data),) = load_holdouts(real.job, real.contract, real.train)
    assert real.judge(real.base.weights, uses={holdout_digest(data): 7}).holdouts[0].uses == 7
    assert real.judge(real.base.weights).holdouts[0].uses == 0
