"""Tables of a job file that belong to a way of retraining, and what tables are made of.

``fedretrain.job`` puts them together, and is where everybody else imports them from.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from .tomlfile import Section, shaped

Name = Annotated[
    str,
    shaped(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "1 to 64 letters, digits, dots, hyphens or underscores, with a letter or digit first",
    ),
]
Reference = Annotated[
    str,
    shaped(
        r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", 'a module and a name in it with a colon between, such as "my_models:build"'
    ),
]
Mode = Literal["continue", "full", "incremental", "transfer", "extend", "replay", "ensemble", "online"]
STAGED = ("continue", "transfer", "extend")
"""Modes that can unfreeze in stages; the others change what is trained on, or train several models."""


class NamedConfig(BaseModel):
    """A Keras object by name with its settings beside it, as in ``{ name = "sgd", learning_rate = 0.01 }``."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.__pydantic_extra__ or {})


Loss = str | NamedConfig


class QuietSection(Section):
    """A table whose ``quiet`` fields are left out of its JSON where they are None, empty or the default.

    So a job that does not use them has the digest it would have without them.
    """

    quiet: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_quiet(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dump: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        silent = {name for name in self.quiet if getattr(self, name) == fields[name].default}
        return {name: value for name, value in dump.items() if name not in silent}


class ReplaySection(Section):
    """How old examples are mixed in, for the mode "replay"."""

    share: float = Field(0.5, gt=0, lt=1, description="share of a round's training examples that are old ones")
    examples: int = Field(500, ge=1, description="the most old examples of a site; its policy may keep fewer")
    sample: Literal["reservoir", "balanced"] = Field(
        "reservoir", description="reservoir: every old example is as likely; balanced: as many of each label"
    )


class StageSection(Section):
    """Some rounds in a row in which more of the model stays as it is, or another learning rate is used."""

    rounds: int = Field(ge=1, description="how many rounds the stage lasts")
    freeze: tuple[str, ...] = Field((), description="patterns as in model.freeze, beside those")
    learning_rate: float | None = Field(None, gt=0, description="default: the optimizer's")


class TransferSection(Section):
    """A new head on the model in use, for the mode "transfer"; the server alone looks at it."""

    head: tuple[NamedConfig, ...] | Reference = Field(
        description='layers such as [{ name = "Dense", units = 10, activation = "softmax" }], in order; or '
        "module:function, which is given what the head is to stand on and returns its output"
    )
    output: str | None = Field(None, description="which output gets a new head, where the model has several")
    after: str | None = Field(None, description="layer the head stands on; default: what the old head stands on")
    allow_loss: bool = Field(False, description="whether labels that the model in use knows may go")


class ExtendSection(Section):
    """The label space that is wanted, by name, for the mode "extend"; the server alone looks at it."""

    labels: tuple[str, ...] = Field(min_length=2, description="wanted labels, by name, in order")
    old: tuple[str, ...] | None = Field(None, description="labels of the model in use; default: as its release says")
    merge: dict[str, tuple[str, ...]] = Field({}, description="by new label: the old ones it replaces")
    allow_loss: bool = Field(False, description="whether labels, or differences between them, may go")


class EnsembleSection(Section):
    """Several models in one, for the mode "ensemble"."""

    members: int = Field(3, ge=2, le=16, description="most models in it; a run adds one while there are fewer")
    change: Literal["weakest", "add"] = Field(
        "weakest", description="of a full one: the weakest is trained on, or a further one replaces the weakest"
    )


class OnlineSection(Section):
    """Small rounds one after the other, for the mode "online": each segment is a run from the model then in use."""

    gate_every: int = Field(5, ge=1, description="rounds from one gate to the next")
    segments: int = Field(4, ge=1, description="how often the gate decides; not used where train.rounds is given")
    step_norm: float = Field(gt=0, description="most that a round may move what is trained, L2 over all of it")
    begun: int | None = Field(None, ge=0, description="rounds before this segment; set where a segment's job is made")


class UncertaintySection(Section):
    """How certain a candidate is of its answers, found out at the sites and told in the gate's report."""

    method: Literal["laplace"] = Field("laplace", description="laplace: a posterior of the last layer")
    prior_precision: float | None = Field(None, gt=0, description="of its prior; default: by the evidence")
