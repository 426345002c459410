"""Another label space for the model in use: labels are added, and, where the job says so, removed or merged.

What a label means is its name. The rows of labels that stay are the incumbent's bit for bit when the first round
begins; those of new labels are drawn by the layer's initializers from the job's seed, and a merged label starts from
the mean of the rows it takes the place of (``fedretrain.surgery.with_labels``). Softmax and sigmoid heads with a unit
for each label can be extended, as probabilities or logits.

Sites' data and holdouts are labelled in the wanted space. The model in use is compared with the candidate on them: a
new label has no probability in it, so it is wrong there; merged labels count together (``fedretrain.labelspace``).
"""

from typing import TYPE_CHECKING, Any

from fedretrain.contract import OutputSpec
from fedretrain.derive import contract_of
from fedretrain.errors import ConfigurationError
from fedretrain.job import ExtendSection, Job
from fedretrain.labelspace import by_name
from fedretrain.modelfile import BaseModel
from fedretrain.settings import resolve_train
from fedretrain.surgery import units, with_labels

from .base import Beginning, InUse, Mode
from .labels import EXCLUSIVE, label_space, own_job, released_labels

if TYPE_CHECKING:
    from server.plan import Plan


class Extend(Mode):
    """See the module docstring."""

    def begin(self, job: Job, incumbent: BaseModel, in_use: InUse) -> Beginning:
        """See ``Mode``."""
        section = job.extend
        if section is None:
            raise ConfigurationError("extend: required with train.mode = 'extend', but missing")
        if job.contract.labels is not None:
            raise ConfigurationError(
                "contract.labels: expected none with train.mode = 'extend'; extend.labels names the wanted labels, and "
                "extend.old those of the model in use"
            )
        output = _output(job, incumbent)
        old = output.model_copy(update={"labels": self._old(section, output, in_use)})
        new = output.model_copy(update={"labels": section.labels})
        allowed = job.model.allow_modules
        sources = by_name(old.labels, new.labels, section.merge, "extend")
        if old.labels == new.labels:
            raise ConfigurationError(
                f"extend.labels: expected other labels than those of the model in use, got {list(new.labels)}"
            )
        base = with_labels(incumbent, output.name, sources, job.train.seed, "extend", allowed)
        space = label_space(
            "extend", (incumbent, base), (old, new), section.merge, allowed, allow_loss=section.allow_loss
        )
        return Beginning(base, labels=new.labels, space=space, own_job=own_job(job, old.labels))

    def _old(self, section: ExtendSection, output: OutputSpec, in_use: InUse) -> tuple[str, ...]:
        """Labels of the model in use by position."""
        old = section.old or released_labels(in_use(), output) or output.labels
        if len(old) != len(output.labels):
            raise ConfigurationError(
                f"extend.old: expected {len(output.labels)} names, one for each unit of output '{output.name}', got "
                f"{len(old)}"
            )
        return old

    def about(self, plan: "Plan") -> dict[str, Any]:
        """See ``Mode``."""
        return {"name": "extend", "labels": {} if plan.space is None else plan.space.as_dict()}


def _output(job: Job, incumbent: BaseModel) -> OutputSpec:
    """The one output of the model in use that has labels, one unit for each."""
    own = own_job(job, None)
    outputs = contract_of(own, incumbent, resolve_train(own.train, incumbent.compile_config)).outputs
    labelled = [spec for spec in outputs if spec.labels]
    if len(labelled) != 1:
        raise ConfigurationError(
            f"extend: expected a model with one output that has labels, got {len(labelled)} among "
            f"{[spec.name for spec in outputs]}"
        )
    output = labelled[0]
    if output.kind not in EXCLUSIVE | {"multilabel"}:
        raise ConfigurationError(
            f"extend: expected an output with a unit for each label, got '{output.name}' with one unit for "
            f"{len(output.labels)} ({output.kind}); give the model a softmax head by train.mode = 'transfer' first"
        )
    name, count = units(incumbent, output.name, "extend", job.model.allow_modules)
    if count != len(output.labels):
        raise ConfigurationError(f"extend: expected {count} labels for the units of '{name}', got {len(output.labels)}")
    return output
