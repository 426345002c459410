"""Two label spaces and which labels are the same, by name: what a model of one answers in the words of the other.

Invariant: a position means nothing here; what a label is called decides.

A label of the wanted space has *sources*, the old labels it takes the place of: itself, several that are merged into
it, or none where it is new. An old label that is the source of nothing is *removed*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigurationError

Array = NDArray[Any]

UNKNOWN = 1e-7
"""Probability of a label that a model does not know, where a loss needs one: Keras clips there."""


@dataclass(frozen=True)
class LabelSpace:
    """How the labels of one output's model in use become the wanted ones.

    Attributes:
        output: The output's name.
        old: Labels by position of the model in use.
        new: The wanted labels by position.
        sources: For each of ``new`` positions in ``old``; one, several that are merged, or none.
        exclusive: Whether exactly one label holds for an example; otherwise each may or may not.
        old_logits: Whether the model in use answers with logits instead of probabilities.
        new_logits: Whether the candidate does.
    """

    output: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    exclusive: bool = True
    old_logits: bool = False
    new_logits: bool = False

    @property
    def added(self) -> tuple[str, ...]:
        """Labels that the model in use does not know."""
        return tuple(name for name, of in zip(self.new, self.sources, strict=True) if not of)

    @property
    def merged(self) -> dict[str, tuple[str, ...]]:
        """Wanted labels that several old ones, or one of another name, become."""
        pairs = zip(self.new, self.sources, strict=True)
        return {name: tuple(self.old[i] for i in of) for name, of in pairs if of and (self.old[of[0]],) != (name,)}

    @property
    def removed(self) -> tuple[str, ...]:
        """Old labels that nothing stands for any more."""
        used = {i for of in self.sources for i in of}
        return tuple(name for i, name in enumerate(self.old) if i not in used)

    @property
    def stays(self) -> bool:
        """Whether every old label keeps its position, so that data labelled by position mean what they meant."""
        return self.new[: len(self.old)] == self.old and not self.merged

    @property
    def losses(self) -> tuple[str, ...]:
        """What cannot be told any more, one phrase each."""
        gone = [f"'{name}' is no label any more" for name in self.removed]
        merges = self.merged.items()
        return (*gone, *(f"{' and '.join(map(repr, of))} become '{to}'" for to, of in merges if len(of) > 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON for the record of a release."""
        merged = {name: list(of) for name, of in self.merged.items()}
        return {
            "output": self.output,
            "labels": list(self.new),
            "before": list(self.old),
            "added": list(self.added),
            "merged": merged,
            "removed": list(self.removed),
        }

    def answers(self, predictions: Array) -> Array:
        """What the model in use predicts, float [n, ..., old], as float64 [n, ..., new] in the candidate's form.

        A label it does not know has probability 0 (``UNKNOWN`` where logits are asked for). Merged labels have the
        probability that one of them holds. What it gives to removed labels is divided among the others.
        """
        wide = predictions.astype(np.float64)
        probable = _probabilities(wide, exclusive=self.exclusive) if self.old_logits else wide
        columns = [_together(probable[..., list(of)], exclusive=self.exclusive) for of in self.sources]
        found = np.stack(columns, axis=-1)
        if self.exclusive and self.removed:
            total = found.sum(axis=-1, keepdims=True)
            found = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
        return _logits(found, exclusive=self.exclusive) if self.new_logits else found


def by_name(
    old: Sequence[str], new: Sequence[str], merge: Mapping[str, Sequence[str]], key: str
) -> tuple[tuple[int, ...], ...]:
    """``LabelSpace.sources``.

    Args:
        old: Labels of the model in use.
        new: Wanted labels.
        merge: By wanted label, old ones it takes the place of.
        key: What the job calls the table, for errors.

    Raises:
        ConfigurationError: Names that occur twice, or a merge of labels that do not exist or are used otherwise.
    """
    for name, labels in ((f"{key}.labels", new), (f"{key}.old", old)):
        if len(set(labels)) != len(labels):
            raise ConfigurationError(f"{name}: expected every name once, got {list(labels)}")
    taken: dict[str, str] = {name: name for name in new if name in old}
    for name, of in merge.items():
        if name not in new:
            raise ConfigurationError(f"{key}.merge.{name}: expected one of {key}.labels {list(new)}, got '{name}'")
        for label in of:
            if label not in old:
                raise ConfigurationError(
                    f"{key}.merge.{name}: expected labels of the model in use {list(old)}, got '{label}'"
                )
            if taken.setdefault(label, name) != name:
                raise ConfigurationError(
                    f"{key}.merge.{name}: '{label}' cannot become '{name}', for it is '{taken[label]}' already; "
                    "leave it out of one of them"
                )
    position = {name: i for i, name in enumerate(old)}
    return tuple(tuple(sorted(position[label] for label, to in taken.items() if to == name)) for name in new)


def _probabilities(logits: Array, *, exclusive: bool) -> Array:
    if exclusive:
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))  # no overflow on either side


def _logits(probable: Array, *, exclusive: bool) -> Array:
    clipped = np.clip(probable, UNKNOWN, 1 - UNKNOWN)
    return np.asarray(np.log(clipped) if exclusive else np.log(clipped) - np.log1p(-clipped))


def _together(probable: Array, *, exclusive: bool) -> Array:
    """The probability that one of the labels in the last axis holds; they are independent where several may."""
    if exclusive or probable.shape[-1] == 1:
        return np.asarray(probable.sum(axis=-1))
    return np.asarray(1 - np.prod(1 - probable, axis=-1))
