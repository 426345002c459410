"""tfrecord: files of ``tf.train.Example``, parsed in batches by the features that site.toml describes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.errors import DataMismatch
from fedretrain.wider import as_found

from .files import matching, readable
from .labels import as_labels, by_position, positions
from .section import Feature, TFRecordData, labelled
from .times import seconds

Array = NDArray[Any]

_EXAMPLES = 1024  # of a batch


def read(section: TFRecordData, folder: Path, contract: Contract) -> Dataset:
    """The examples; raises DataMismatch."""
    inputs = _names(section.input, [spec.name for spec in contract.inputs], "input")
    place = "its feature in [data.label] of site.toml"
    with_labels = labelled(section.label, contract, place)
    outputs = _names(section.label or {}, with_labels, "label")
    weight, time = section.sample_weight, section.timestamp
    wanted = {*inputs.values(), *outputs.values(), *filter(None, (weight, time))}
    for name in sorted(wanted):
        if name not in section.features:
            raise DataMismatch("data-missing", name, "this feature described in [data.features] of site.toml")
    files = matching(folder, section.path)
    with readable("undamaged TFRecord files, compressed as site.toml says"):
        arrays = _arrays(files, section, {name: section.features[name] for name in sorted(wanted)})
    if arrays is None:
        raise DataMismatch("data-empty", contract.inputs[0].name, "at least one example")
    y = {}
    for output in contract.outputs:
        if output.name not in outputs:
            continue
        values = arrays[outputs[output.name]]
        one_each = values.ndim == 1 and by_position(output)
        found = as_labels(positions(values, output), output) if one_each else as_found(values, output)
        y[output.name] = found
    x = {name: arrays[feature] for name, feature in inputs.items()}
    weights = arrays[weight] if weight else None
    times = seconds(arrays[time], time) if time else None
    without = tuple(spec.name for spec in contract.outputs if spec.name not in outputs)
    return Dataset(x, y, weights, preprocessing=section.preprocessing, time=times, unlabelled=without)


def _names(said: str | Mapping[str, str], names: list[str], key: str) -> dict[str, str]:
    """The feature of each input or output."""
    by_name = {names[0]: said} if isinstance(said, str) and len(names) == 1 else said
    for name in names:
        if isinstance(by_name, str) or name not in by_name:
            raise DataMismatch("data-missing", name, f"its feature in [data.{key}] of site.toml")
    return {name: by_name[name] for name in names} if isinstance(by_name, Mapping) else {}


def _arrays(files: list[Path], section: TFRecordData, features: Mapping[str, Feature]) -> dict[str, Array] | None:
    """Each feature of all examples, [n, *shape]; texts as a list of bytes in an object array. None without examples."""
    import tensorflow as tf

    records = tf.data.TFRecordDataset([str(file) for file in files], compression_type=section.compression)
    spec = {name: _parsed_as(feature) for name, feature in features.items()}
    parts: dict[str, list[Array]] = {name: [] for name in features}
    for batch in records.batch(_EXAMPLES):
        try:
            parsed = tf.io.parse_example(batch, spec)
        except tf.errors.InvalidArgumentError:
            _name_the_feature(batch.numpy(), features)
            raise
        for name, feature in features.items():
            parts[name].append(_values(parsed[name].numpy(), name, feature))
    if not any(parts.values()):
        return None
    return {name: np.concatenate(parts.pop(name)) for name in list(parts)}


def _parsed_as(feature: Feature) -> Any:
    import tensorflow as tf

    kinds = {"float32": tf.float32, "int64": tf.int64, "bytes": tf.string}
    return tf.io.FixedLenFeature([] if feature.dtype == "bytes" else list(feature.shape), kinds[feature.dtype])


def _values(values: Array, name: str, feature: Feature) -> Array:
    if feature.dtype != "bytes" or not feature.shape:
        return values
    size = int(np.prod(feature.shape))
    if any(len(value) != size for value in values):
        raise DataMismatch("data-shape", name, f"{size} bytes for the shape {list(feature.shape)}")
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), *feature.shape)


def _name_the_feature(records: Array, features: Mapping[str, Feature]) -> None:
    """Raise DataMismatch for the first feature that is missing or of another kind or size."""
    import tensorflow as tf

    lists = {"float32": "float_list", "int64": "int64_list", "bytes": "bytes_list"}
    for record in records:
        found = tf.train.Example.FromString(record).features.feature
        for name, feature in features.items():
            if name not in found:
                raise DataMismatch("data-missing", name, "a feature of this name in every example")
            kind = lists[feature.dtype]
            if found[name].WhichOneof("kind") != kind:
                raise DataMismatch("data-dtype", name, feature.dtype)
            count = 1 if feature.dtype == "bytes" else int(np.prod(feature.shape))
            if len(getattr(found[name], kind).value) != count:
                raise DataMismatch("data-shape", name, f"shape {list(feature.shape)}")
