"""What modes that change the label space share: which labels the model in use has, and how they become the wanted ones.

Labels are what their names say. They come from the release in use; where it has none for the model, from the job, and
at last from the positions: "0", "1" and so on.
"""

from collections.abc import Mapping, Sequence

from fedretrain.contract import Contract, OutputSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job
from fedretrain.labelspace import LabelSpace, by_name
from fedretrain.modelfile import BaseModel
from fedretrain.surgery import gives_logits

EXCLUSIVE = frozenset({"multiclass", "onehot"})


def own_job(job: Job, labels: Sequence[str] | None) -> Job:
    """The job as it would be written for the model in use, whose labels have these names; None: their positions.

    Its loss is the model's own where its file says one; stages are meant for another model.
    """
    contract = job.contract.model_copy(update={"labels": None if labels is None else tuple(labels)})
    return job.model_copy(update={"contract": contract, "train": job.train.model_copy(update={"stages": ()})})


def released_labels(in_use: Contract | None, output: OutputSpec) -> tuple[str, ...] | None:
    """Names that the release in use has for an output's labels; None where it does not know as many."""
    for spec in () if in_use is None else in_use.outputs:
        if spec.name == output.name and len(spec.labels) == len(output.labels):
            return spec.labels
    return None


def label_space(  # noqa: PLR0913 - both models, and what the job says of their labels
    key: str,
    models: tuple[BaseModel, BaseModel],
    outputs: tuple[OutputSpec, OutputSpec],
    merge: Mapping[str, Sequence[str]],
    allow_modules: Sequence[str],
    *,
    allow_loss: bool,
) -> LabelSpace:
    """How labels of the model in use become the wanted ones.

    Args:
        key: What the job calls the table, for errors.
        models: The model in use and the base.
        outputs: Theirs, with names of labels.
        merge: By wanted label, old ones that it takes the place of.
        allow_modules: As in the job.
        allow_loss: Whether labels may go.

    Raises:
        ConfigurationError: The names do not go together, or labels would go that the job does not let go.
    """
    old, new = outputs
    space = LabelSpace(
        output=new.name,
        old=old.labels,
        new=new.labels,
        sources=by_name(old.labels, new.labels, merge, key),
        exclusive=new.kind in EXCLUSIVE,
        old_logits=gives_logits(models[0], old.name, allow_modules),
        new_logits=gives_logits(models[1], new.name, allow_modules),
    )
    if space.losses and not allow_loss:
        raise ConfigurationError(
            f"{key}.allow_loss: the model in use knows what the candidate cannot tell any more: "
            f"{'; '.join(space.losses)}. Keep these labels, or set {key}.allow_loss = true where that is meant"
        )
    return space
