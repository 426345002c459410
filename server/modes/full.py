"""Training from freshly initialised weights, on everything the sites have.

Sites train from the model in use as ever, so they need no other base model; the first round sends other values. What
does not change keeps the values it has in the model in use: frozen layers, and a Normalization layer's numbers.

Fresh values are what the architecture's own initializers draw from the job's seed.
"""

from fedretrain.job import Job
from fedretrain.modelfile import BaseModel
from fedretrain.surgery import fresh_weights

from .base import Beginning, InUse, Mode


class Full(Mode):
    """See the module docstring."""

    def begin(self, job: Job, incumbent: BaseModel, in_use: InUse) -> Beginning:  # noqa: ARG002 - as any mode's
        """See ``Mode``."""
        return Beginning(incumbent, start=fresh_weights(incumbent, job.train.seed, job.model.allow_modules))
