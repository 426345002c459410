"""Two label spaces by name, with numbers derived by hand."""

import numpy as np
import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.labelspace import UNKNOWN, LabelSpace, by_name

OLD = ("cat", "dog", "owl")


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values)


def space(new: tuple[str, ...], merge: dict[str, tuple[str, ...]] | None = None, **how: bool) -> LabelSpace:
    return LabelSpace("out", OLD, new, by_name(OLD, new, merge or {}, "extend"), **how)


def test_labels_are_found_by_their_names_wherever_they_stand() -> None:
    """A new label has no source; what moved is still itself."""
    grown = space(("owl", "cat", "bat", "dog"))
    assert grown.sources == ((2,), (0,), (), (1,))
    assert (grown.added, grown.merged, grown.removed, grown.losses) == (("bat",), {}, (), ())
    assert not grown.stays
    assert space(("cat", "dog", "owl", "bat")).stays


def test_what_is_lost_is_said_by_name() -> None:
    """Removed and merged labels; one that only gets another name loses nothing."""
    shrunk = space(("pet", "bird"), {"pet": ("cat", "dog"), "bird": ("owl",)})
    assert shrunk.losses == ("'cat' and 'dog' become 'pet'",)
    assert shrunk.merged == {"pet": ("cat", "dog"), "bird": ("owl",)}
    assert space(("cat", "dog")).losses == ("'owl' is no label any more",)


def test_probabilities_in_the_words_of_another_space() -> None:
    """New: 0. Merged: the sum. Removed: divided among the others in proportion."""
    p = rows([0.5, 0.3, 0.2])
    np.testing.assert_allclose(space(("owl", "bat", "cat", "dog")).answers(p), rows([0.2, 0, 0.5, 0.3]), rtol=1e-6)
    np.testing.assert_allclose(space(("pet", "owl"), {"pet": ("cat", "dog")}).answers(p), rows([0.8, 0.2]), rtol=1e-6)
    np.testing.assert_allclose(space(("dog", "owl")).answers(p), rows([0.6, 0.4]), rtol=1e-6)
    np.testing.assert_allclose(space(("bat", "elk")).answers(p), rows([0, 0]))  # nothing is known: nothing is divided


def test_logits_are_turned_into_probabilities_and_back() -> None:
    """Softmax of ln 5, ln 3, ln 2 is 0.5, 0.3, 0.2; an unknown label has the least probability a loss takes."""
    logits = np.log(rows([5, 3, 2]))
    found = space(("owl", "bat", "cat", "dog"), old_logits=True, new_logits=True).answers(logits)
    np.testing.assert_allclose(found, np.log([[0.2, UNKNOWN, 0.5, 0.3]]))


def test_labels_that_may_hold_together_merge_as_either() -> None:
    """1 - (1 - 0.5)(1 - 0.2) = 0.6; none takes from another, so nothing is divided when one goes."""
    p = rows([0.5, 0.2, 0.9])
    either = space(("pet", "bat"), {"pet": ("cat", "dog")}, exclusive=False)
    np.testing.assert_allclose(either.answers(p), rows([0.6, 0]), rtol=1e-6)
    logits = space(("owl",), exclusive=False, old_logits=True, new_logits=True).answers(rows([0, 0, 2]))
    np.testing.assert_allclose(logits, rows([2]))


@pytest.mark.parametrize(
    ("new", "merge", "line"),
    [
        (("cat", "cat"), {}, "extend.labels: expected every name once, got ['cat', 'cat']"),
        (("pet",), {"bird": ("owl",)}, "extend.merge.bird: expected one of extend.labels ['pet'], got 'bird'"),
        (("pet",), {"pet": ("elk",)}, "extend.merge.pet: expected labels of the model in use"),
        (("pet", "cat"), {"pet": ("cat",)}, "extend.merge.pet: 'cat' cannot become 'pet', for it is 'cat' already"),
        (("a", "b"), {"a": ("cat",), "b": ("cat",)}, "extend.merge.b: 'cat' cannot become 'b', for it is 'a' already"),
    ],
)
def test_names_that_do_not_go_together(new: tuple[str, ...], merge: dict[str, tuple[str, ...]], line: str) -> None:
    """Each is refused in one line that names the key."""
    with pytest.raises(ConfigurationError) as caught:
        space(new, merge)
    assert str(caught.value).startswith(line)
