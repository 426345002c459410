"""A new head on the model in use.

The layers below keep their values; which of them train is said by ``model.freeze`` and, in turn, by ``train.stages``.
The head's first values are drawn from the job's seed. Sites are sent the whole new model once, as any base model.

The model in use is compared with the candidate on the same holdouts by the names of their labels: what it predicts for
labels that both know counts, and of a label that it does not know it is never right. Labels that would go have to be
let go by the job, and a head that answers another kind of question cannot be compared, so it is refused. So is a head
that gives logits where the loss takes probabilities, or the reverse: nothing good could come of its training.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedretrain.contract import OutputSpec
from fedretrain.derive import contract_of
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, NamedConfig, TrainSection, TransferSection
from fedretrain.labelspace import LabelSpace
from fedretrain.modelfile import BaseModel
from fedretrain.settings import make_loss, resolve_train
from fedretrain.surgery import gives_logits, with_head

from .base import Beginning, InUse, Mode
from .labels import EXCLUSIVE, label_space, own_job, released_labels

if TYPE_CHECKING:
    from server.plan import Plan


class Transfer(Mode):
    """See the module docstring."""

    def begin(self, job: Job, incumbent: BaseModel, in_use: InUse) -> Beginning:
        """See ``Mode``."""
        section = job.transfer
        if section is None:
            raise ConfigurationError("transfer: required with train.mode = 'transfer', but missing")
        made = with_head(
            incumbent, section.output, section.after, section.head, job.train.seed, job.model.allow_modules
        )
        base = BaseModel(made.architecture, made.weights, _compiled(job.train, made.compile_config))
        own = own_job(_own_loss(job, incumbent), None)
        before = contract_of(own, incumbent, resolve_train(own.train, incumbent.compile_config)).outputs
        resolved = resolve_train(job.train, base.compile_config)
        after = contract_of(job, base, resolved).outputs
        position = 0 if section.output is None else [spec.name for spec in before].index(section.output)
        old, new = before[position], after[position]
        _check_loss(resolved, base, new, job.model.allow_modules)
        if sum(bool(spec.labels) for spec in after) == 1:  # of several a job cannot name the labels
            _check_named(job, old, new)
        names = released_labels(in_use(), old)
        if names is not None and sum(bool(spec.labels) for spec in before) == 1:
            old = old.model_copy(update={"labels": names})
            own = own_job(own, names)
        return Beginning(base, space=_space(job, section, (incumbent, base), (old, new)), own_job=own)

    def about(self, plan: "Plan") -> dict[str, Any]:
        """See ``Mode``."""
        return {"name": "transfer"} | ({} if plan.space is None else {"labels": plan.space.as_dict()})


def _check_named(job: Job, old: OutputSpec, new: OutputSpec) -> None:
    """Raises ConfigurationError where nobody says what further labels are called; names would be made up."""
    if job.contract.labels is None and len(new.labels) > len(old.labels) > 0:
        raise ConfigurationError(
            f"contract.labels: expected the names of all {len(new.labels)} labels of transfer.head, of which the model "
            f"in use knows {len(old.labels)}, got none; name them in the head's order"
        )


def _check_loss(train: TrainSection, base: BaseModel, new: OutputSpec, allow_modules: Sequence[str]) -> None:
    """Raises ConfigurationError where a head for labels gives logits and its loss takes none, or the reverse."""
    if new.kind == "regression":
        return
    loss = train.loss.get(new.name) if isinstance(train.loss, dict) else train.loss
    expected = isinstance(loss, NamedConfig) and bool(loss.settings.get("from_logits"))
    if gives_logits(base, new.name, allow_modules) == expected:
        return
    key = f"train.loss.{new.name}" if isinstance(train.loss, dict) else "train.loss"
    activation = "softmax" if new.kind in EXCLUSIVE else "sigmoid"
    if expected:
        raise ConfigurationError(
            f"transfer.head: expected a head that gives logits, as {key} = '{new.loss}' with from_logits says, got one "
            f'with a softmax or sigmoid at its end; leave that out, or set {key} = "{new.loss}"'
        )
    raise ConfigurationError(
        f"transfer.head: expected a head that gives probabilities, as {key} = '{new.loss}' says, got one that ends "
        f'without softmax or sigmoid; add activation = "{activation}" to its last layer, or set {key} = {{ name = '
        f'"{new.loss}", from_logits = true }}'
    )


def _space(
    job: Job, section: TransferSection, models: tuple[BaseModel, BaseModel], outputs: tuple[OutputSpec, OutputSpec]
) -> LabelSpace | None:
    """How the labels differ, None where nothing has to be translated; raises where the two cannot be compared."""
    old, new = outputs
    allowed = job.model.allow_modules
    logits = [gives_logits(model, spec.name, allowed) for model, spec in zip(models, outputs, strict=True)]
    if (old.kind, old.shape, old.labels) == (new.kind, new.shape, new.labels) and logits[0] == logits[1]:
        return None
    both = {old.kind, new.kind}
    if both <= EXCLUSIVE or both == {"multilabel"}:
        return label_space("transfer", models, outputs, {}, allowed, allow_loss=section.allow_loss)
    raise ConfigurationError(
        f"transfer.head: expected a head that answers as output '{old.name}' of the model in use does, {old.kind} "
        f"{list(old.shape)}, got {new.kind} {list(new.shape)}: the two could not be compared on the same holdout, so "
        "nothing could speak for a release. Make the model with that head beforehand and start from it"
    )


def _own_loss(job: Job, incumbent: BaseModel) -> Job:
    """The job with the loss that the model in use was compiled with; the job's is meant for the new head."""
    if not (incumbent.compile_config or {}).get("loss"):
        return job
    return job.model_copy(update={"train": job.train.model_copy(update={"loss": None})})


def _compiled(train: TrainSection, own: dict[str, Any] | None) -> dict[str, Any] | None:
    """How the model is compiled, with the job's loss and metrics where it gives some."""
    if own is None:
        return None
    found = dict(own)
    if train.loss is not None:
        losses = train.loss if isinstance(train.loss, dict) else {"": train.loss}
        stored = {output: _stored(loss) for output, loss in losses.items()}
        found["loss"] = stored if isinstance(train.loss, dict) else stored[""]
    if train.metrics is not None:
        found["metrics"] = list(train.metrics)
    return found


def _stored(loss: str | NamedConfig) -> Any:
    """A loss as Keras stores it."""
    import keras

    if isinstance(loss, str) or not loss.settings:
        return loss if isinstance(loss, str) else loss.name
    return keras.saving.serialize_keras_object(make_loss(loss))
