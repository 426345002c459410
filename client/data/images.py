"""images: PNG, JPEG, GIF or BMP files in one folder per class, named as the labels of the model's only output.

Pictures are decoded one at a time into one array, in the channels of the model's only input. Hidden files and files of
other kinds are passed over.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.dataset import Dataset
from fedretrain.errors import DataMismatch

from .files import readable, unreadable
from .labels import as_labels, by_position, positions
from .section import ImageData

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp"})


def read(section: ImageData, folder: Path, contract: Contract) -> Dataset:
    """The examples; raises DataMismatch."""
    if len(contract.inputs) != 1 or len(contract.outputs) != 1 or not by_position(contract.outputs[0]):
        raise unreadable("another format: a folder of images has one input and one label for each")
    (spec,), (output,) = contract.inputs, contract.outputs
    files, labels = _listed(folder / section.path, output)
    if not files:
        raise DataMismatch("data-empty", spec.name, "at least one picture in a folder of its label")
    with readable("undamaged PNG, JPEG, GIF or BMP files"):
        x = _decoded(files, spec, section)
    return Dataset({spec.name: x}, {output.name: as_labels(labels, output)}, preprocessing=section.preprocessing)


def _listed(root: Path, output: OutputSpec) -> tuple[list[Path], NDArray[Any]]:
    """All pictures, by class and name, and the position of each one's label."""
    try:
        classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        by_class = [sorted(file for file in path.iterdir() if _is_picture(file)) for path in classes]
    except OSError:
        raise unreadable("a folder with one folder for each label") from None
    labels = positions([path.name for path in classes], output)
    counts = [len(files) for files in by_class]
    return [file for files in by_class for file in files], np.repeat(labels, counts)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")


def _decoded(files: list[Path], spec: InputSpec, section: ImageData) -> NDArray[Any]:
    """[n, *shape] in the input's dtype."""
    flat = len(spec.shape) == 2  # a grey picture without an axis for its one channel
    if len(spec.shape) not in (2, 3):
        raise DataMismatch("data-shape", spec.name, f"{list(spec.shape)}, which no picture has")
    height, width, channels = (*spec.shape, 1) if flat else spec.shape
    first = _picture(files[0], channels or 0)
    size = (height or first.shape[0], width or first.shape[1], channels or first.shape[2])
    whole = np.empty((len(files), *size), spec.dtype)
    for row, file in enumerate(files):
        picture = _picture(file, size[2])
        if picture.shape != size:
            if not section.resize or picture.shape[2] != size[2]:
                wanted = "x".join(map(str, size))
                raise DataMismatch("data-shape", spec.name, f"pictures of {wanted}, or resize = true in site.toml")
            picture = _resized(picture, size)
        whole[row] = picture / section.divide_by if section.divide_by != 1 else picture
    return whole[..., 0] if flat else whole


def _picture(file: Path, channels: int) -> NDArray[Any]:
    """uint8 [height, width, channels]; 0 channels: as many as the file has."""
    import tensorflow as tf

    picture: NDArray[Any] = tf.io.decode_image(file.read_bytes(), channels=channels, expand_animations=False).numpy()
    return picture


def _resized(picture: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    import tensorflow as tf

    scaled: NDArray[Any] = tf.image.resize(picture, size[:2], antialias=True).numpy()
    return scaled
