"""The contract survives its own JSON, and its digest covers everything in it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec, key, keys, parse_contract

names = st.text(min_size=1, max_size=20)
dims = st.integers(0, 1000)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
inputs = st.builds(
    InputSpec,
    name=names,
    shape=st.lists(st.none() | dims, max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "int32"]),
    low=numbers,
    high=numbers,
    columns=st.none() | st.lists(names, max_size=3).map(tuple),
)
outputs = st.builds(
    OutputSpec,
    name=names,
    shape=st.lists(dims, max_size=2).map(tuple),
    kind=st.sampled_from(["multiclass", "onehot", "binary", "multilabel", "regression"]),
    loss=names,
    labels=st.lists(names, max_size=3).map(tuple),
)
variables = st.builds(
    VariableSpec,
    shape=st.lists(dims, max_size=4).map(tuple),
    dtype=st.sampled_from(["float32", "float16", "int64"]),
    rule=st.sampled_from(["train", "average", "keep", "local"]),
)
contracts = st.builds(
    Contract,
    inputs=st.lists(inputs, min_size=1, max_size=2).map(tuple),
    outputs=st.lists(outputs, min_size=1, max_size=2).map(tuple),
    preprocessing=st.none() | st.text(),
    architecture=names,
    base=names,
    variables=st.lists(variables, max_size=5).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(contracts)
def test_json_round_trip_keeps_value_and_digest(contract: Contract) -> None:
    """Written, sent and read again it is the same contract."""
    again = parse_contract(json.loads(contract.model_dump_json()))
    assert again == contract
    assert again.digest == contract.digest


@settings(max_examples=30, deadline=None)
@given(contracts, st.data())
def test_digest_covers_every_variable(contract: Contract, data: st.DataObject) -> None:
    """Another rule for one variable is another contract."""
    if not contract.variables:
        return
    i = data.draw(st.integers(0, len(contract.variables) - 1))
    rules = {"train", "average", "keep", "local"} - {contract.variables[i].rule}
    changed = contract.variables[i].model_copy(update={"rule": sorted(rules)[0]})
    other = contract.model_copy(update={"variables": (*contract.variables[:i], changed, *contract.variables[i + 1 :])})
    assert other.digest != contract.digest


def test_changing_variables_are_train_and_average_in_order() -> None:
    """Only these travel, under their position's key; bytes are counted by shape and dtype."""
    specs = [("train", (2, 3)), ("keep", (5,)), ("average", (3,)), ("local", (2,)), ("train", ())]
    contract = Contract(
        inputs=(),
        outputs=(),
        preprocessing=None,
        architecture="",
        base="",
        variables=tuple(VariableSpec(shape=s, dtype="float32", rule=r) for r, s in specs),
    )
    assert contract.changing == (0, 2, 4)
    assert keys(contract.changing) == ["00000", "00002", "00004"] == [key(0), key(2), key(4)]
    assert (contract.changing_nbytes, contract.nbytes) == (4 * 10, 4 * 17)


@pytest.mark.parametrize("change", [{"format": "fedretrain.contract/2"}, {"extra": 1}, {"variables": [{"shape": [1]}]}])
def test_unknown_format_key_or_missing_field_is_refused(change: dict[str, object]) -> None:
    """What this version does not know it does not guess."""
    value = {"inputs": [], "outputs": [], "preprocessing": None, "architecture": "", "base": "", "variables": []}
    with pytest.raises(ValidationError):
        parse_contract(value | change)
