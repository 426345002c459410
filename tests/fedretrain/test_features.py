"""Numbers of an example, by hand, and histograms of them."""

import numpy as np

from fedretrain.checks import directions
from fedretrain.contract import Contract, Feature, InputSpec
from fedretrain.features import features_of, histogram, values

CONTRACT = Contract(
    inputs=(InputSpec(name="x", shape=(2,), dtype="float32", columns=("age", "weight")),),
    outputs=(),
    preprocessing=None,
    architecture="ab" * 32,
    base="0" * 64,
    variables=(),
)


def of(*inputs: InputSpec) -> Contract:
    return CONTRACT.model_copy(update={"inputs": inputs})


def test_flat_inputs_are_watched_by_column_and_others_as_a_whole() -> None:
    """At most 64 columns; names by the contract's, with the input's in front where there are several."""
    wide = InputSpec(name="w", shape=(65,), dtype="float32")
    narrow = InputSpec(name="n", shape=(2,), dtype="float32")
    assert [f.name for f in features_of(CONTRACT, 0, 8)] == ["age", "weight"]
    assert [f.name for f in features_of(of(narrow), 7, 2)] == ["column 0", "column 1", "projection 0", "projection 1"]
    names = ["w.brightness", "w.contrast", "w.sharpness", "n.column 0", "n.column 1"]
    assert [f.name for f in features_of(of(wide, narrow), 0, 8)] == names


def test_brightness_contrast_and_sharpness() -> None:
    """[[0, 2], [4, 6]]: mean 3, deviation sqrt((9 + 1 + 1 + 9) / 4) = sqrt 5, neighbours 4, 4, 2, 2 apart: 3."""
    contract = of(InputSpec(name="image", shape=(2, 2, 1), dtype="float32"))
    features = tuple(features_of(contract, 0, 0))
    image = np.float32([[0, 2], [4, 6]]).reshape(1, 2, 2, 1)
    found = values(contract, features, {"image": np.concatenate([image, image * 0])})
    assert found["brightness"].tolist() == [3, 0]
    np.testing.assert_allclose(found["contrast"], [5**0.5, 0])
    assert found["sharpness"].tolist() == [3, 0]
    colours = of(InputSpec(name="image", shape=(2, 2, 2), dtype="float32"))  # channels are no neighbours
    two = values(colours, features, {"image": np.concatenate([image, image + 100], axis=3)})
    assert two["sharpness"].tolist() == [3]
    row = of(InputSpec(name="image", shape=(4,), dtype="float32"))
    flat = values(row, features, {"image": image.reshape(1, 4)})
    assert flat["sharpness"].tolist() == [2]


def test_projections_are_sums_over_the_layer() -> None:
    """h · d for each direction, and for each example what it is without the others."""
    features = tuple(Feature(name=f"p{i}", kind="projection", input="", index=i, edges=()) for i in (0, 2))
    hidden = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    found = values(CONTRACT, features, {}, hidden)
    vectors = directions(CONTRACT, 6, 3).astype(np.float64)
    np.testing.assert_allclose(found["p2"], hidden @ vectors[:, 2])
    alone = values(CONTRACT, features, {}, hidden[7:8])
    assert alone["p0"].tobytes() == found["p0"][7:8].tobytes()


def test_a_value_on_an_edge_belongs_to_the_cell_above() -> None:
    """Cells of edges 1, 2: below 1, from 1 to below 2, from 2 on; the outer ones are open."""
    assert histogram(np.array([-9.0, 0.999, 1.0, 1.5, 2.0, 99.0]), (1.0, 2.0)).tolist() == [2, 2, 2]
    assert histogram(np.zeros(0), (1.0,)).tolist() == [0, 0]
