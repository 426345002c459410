"""What a holdout is judged by, and one number per example from batches of predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedretrain.contract import Contract, OutputSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import HoldoutSection, Loss, NamedConfig, TrainSection
from server.measure import Measure, choose_measure, is_single_decision, make_scorer, two_labels

DIGIT = OutputSpec(name="digit", shape=(3,), kind="multiclass", loss="", labels=("0", "1", "2"))
ONEHOT = OutputSpec(name="hot", shape=(2,), kind="onehot", loss="", labels=("no", "yes"))
SICK = OutputSpec(name="sick", shape=(1,), kind="binary", loss="", labels=("0", "1"))
TAGS = OutputSpec(name="tags", shape=(4,), kind="multilabel", loss="", labels=("a", "b", "c", "d"))
DOSE = OutputSpec(name="dose", shape=(1,), kind="regression", loss="")


def contract(*outputs: OutputSpec) -> Contract:
    return Contract(inputs=(), outputs=outputs, preprocessing=None, architecture="", base="", variables=())


def section(**settings: Any) -> HoldoutSection:
    return HoldoutSection.model_validate({"name": "old", "path": Path("old.npz"), **settings})


def scored(spec: OutputSpec, metric: str, loss: Loss, prediction: Any, labels: Any) -> list[float]:
    scorer = make_scorer(Measure(metric, (0,)), contract(spec), TrainSection(loss=loss))  # type: ignore[arg-type]
    rows: NDArray[Any] = scorer([np.asarray(prediction, np.float32)], [np.asarray(labels)])
    return [float(x) for x in rows]


@pytest.mark.parametrize(
    ("spec", "metrics", "expected"),
    [
        (DIGIT, ("sparse_categorical_accuracy",), "accuracy"),
        (DIGIT, ("SparseCategoricalAccuracy", "auc"), "accuracy"),
        (DIGIT, ("acc",), "accuracy"),
        (DIGIT, (), "accuracy"),
        (DIGIT, ("top_k_categorical_accuracy",), "loss"),
        (SICK, ("AUC", "accuracy"), "auc"),
        (ONEHOT, ("auc",), "auc"),
        (DOSE, ("mean_absolute_error",), "loss"),
        (DOSE, ("accuracy",), "loss"),
    ],
)
def test_the_jobs_first_metric_decides(spec: OutputSpec, metrics: tuple[str, ...], expected: str) -> None:
    """Accuracies are accuracy, AUC is auc, everything else and any regression is loss."""
    assert choose_measure(section(), contract(spec), TrainSection(metrics=metrics)) == Measure(expected, (0,))  # type: ignore[arg-type]


def test_the_holdouts_own_metric_and_output_come_first() -> None:
    """Of several outputs one can be chosen; without, all losses are summed."""
    both = contract(DIGIT, SICK)
    train = TrainSection(metrics=("accuracy",))
    assert choose_measure(section(), both, train) == Measure("loss", (0, 1))
    assert choose_measure(section(output="sick"), both, train) == Measure("accuracy", (1,))
    assert choose_measure(section(output="sick", metric="auc"), both, train) == Measure("auc", (1,))


@pytest.mark.parametrize(
    ("outputs", "settings", "said"),
    [
        ((DIGIT,), {"metric": "auc"}, "needs two labels, and 'digit' (multiclass) has 3"),
        ((TAGS,), {"metric": "auc"}, "needs two labels, and 'tags' (multilabel) has 4"),
        ((DOSE,), {"metric": "accuracy"}, "'dose' is a regression"),
        ((DIGIT, SICK), {"metric": "accuracy"}, "set `output`"),
        ((DIGIT, SICK), {"output": "sik"}, "expected one of digit, sick, got 'sik'; did you mean 'sick'?"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(
    outputs: tuple[OutputSpec, ...], settings: dict[str, Any], said: str
) -> None:
    """The line names the holdout and what would fit."""
    with pytest.raises(ConfigurationError) as caught:
        choose_measure(section(**settings), contract(*outputs), TrainSection())
    assert str(caught.value).startswith("holdout 'old': ")
    assert said in str(caught.value)


def test_accuracy_of_each_kind_of_labels() -> None:
    """The largest output, or probability above 0.5, against labels in all their shapes."""
    crossentropy = "binary_crossentropy"
    assert scored(DIGIT, "accuracy", "sparse_categorical_crossentropy", [[1, 2, 0], [5, 1, 1]], [1, 2]) == [1, 0]
    assert scored(ONEHOT, "accuracy", "categorical_crossentropy", [[1, 2], [5, 1]], [[0, 1], [0, 1]]) == [1, 0]
    assert scored(SICK, "accuracy", crossentropy, [[0.6], [0.4], [0.5]], [[1], [1], [0]]) == [1, 0, 1]
    assert scored(TAGS, "accuracy", crossentropy, [[0.9, 0.1, 0.9, 0.1]], [[1, 0, 0, 0]]) == [0.75]


def test_logits_decide_at_zero() -> None:
    """With from_logits in the loss, 0.3 is a yes and -0.3 a no."""
    loss = NamedConfig(name="binary_crossentropy", from_logits=True)  # type: ignore[call-arg]
    assert scored(SICK, "accuracy", loss, [[0.3], [-0.3]], [[1], [1]]) == [1, 0]


def test_only_one_decision_an_example_is_matched() -> None:
    """Multi-label accuracy is a mean of decisions, others are 0 or 1."""
    one = [is_single_decision(Measure("accuracy", (0,)), contract(s)) for s in (DIGIT, ONEHOT, SICK, TAGS)]
    assert one == [True, True, True, False]
    assert not is_single_decision(Measure("loss", (0,)), contract(DIGIT))


def test_ranking_for_auc() -> None:
    """The probability of the one output; of two outputs the second minus the first."""
    assert scored(SICK, "auc", "binary_crossentropy", [[0.5], [0.25]], [[1], [1]]) == [0.5, 0.25]
    assert scored(ONEHOT, "auc", "categorical_crossentropy", [[0.25, 0.75]], [[0, 1]]) == [0.5]
    assert two_labels(np.array([[0.0, 1.0], [1.0, 0.0]]), ONEHOT).tolist() == [True, False]
    assert two_labels(np.array([[1.0], [0.0]]), SICK).tolist() == [True, False]


def test_loss_is_the_jobs_own_example_by_example() -> None:
    """Minus -log p of the label; squared errors as a mean over positions; settings of the loss are kept."""
    crossentropy = scored(DIGIT, "loss", "sparse_categorical_crossentropy", [[0.5, 0.25, 0.25]] * 2, [0, 1])
    assert crossentropy == pytest.approx([np.log(0.5), np.log(0.25)], rel=1e-5)
    assert scored(DOSE, "loss", "mean_squared_error", [[1.0], [3.0]], [[0.0], [0.0]]) == [-1, -9]
    assert scored(DOSE, "loss", "MeanSquaredError", [[3.0]], [[0.0]]) == [-9]
    huber = NamedConfig(name="huber", delta=0.5)  # type: ignore[call-arg]
    assert scored(DOSE, "loss", huber, [[3.0]], [[0.0]]) == pytest.approx([-(0.5 * 3 - 0.125)])
    logits = NamedConfig(name="sparse_categorical_crossentropy", from_logits=True)  # type: ignore[call-arg]
    assert scored(DIGIT, "loss", logits, [[0.0, 0.0, 0.0]], [2]) == pytest.approx([-np.log(3)])


def test_several_outputs_sum_their_losses() -> None:
    """-log 0.5 of the class and 4 of the dose, each by its own loss."""
    train = TrainSection(loss={"digit": "sparse_categorical_crossentropy", "dose": "mean_squared_error"})
    scorer = make_scorer(Measure("loss", (0, 1)), contract(DIGIT, DOSE), train)
    predictions = [np.array([[0.5, 0.25, 0.25]], np.float32), np.array([[2.0]], np.float32)]
    assert scorer(predictions, [np.array([0]), np.array([[0.0]])]) == pytest.approx([np.log(0.5) - 4])


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    """Dice has one value for a batch: nothing to pair."""
    with pytest.raises(ConfigurationError, match="'dice' has no value for a single example"):
        scored(DOSE, "loss", "dice", [[1.0], [0.5]], [[1.0], [0.0]])


def test_an_unknown_loss_is_refused() -> None:
    """One line of ours, whatever Keras says."""
    with pytest.raises(ConfigurationError, match=r"train\.loss: Keras has no 'mean_cubed_error'"):
        scored(DOSE, "loss", "mean_cubed_error", [[1.0]], [[1.0]])
