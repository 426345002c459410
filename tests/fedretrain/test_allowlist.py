"""Nothing but Keras' own plain objects, and the receiver's named ones, gets through (fault 49)."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers

from fedretrain.allowlist import _LOOKUPS, CALLED_FROM, REFUSED, _public_classes, check_tree, import_named
from fedretrain.architecture import build, to_json
from fedretrain.errors import ConfigurationError, ModelRefused

from .models import nested
from .own_layers import Multiply, Scale, Shift, halved, unregistered

OWN = "tests.fedretrain.own_layers"


def obj(class_name: str, config: Any = None, module: str = "keras.layers", **more: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {} if config is None else config, "module": module} | (
        {"registered_name": None} | more
    )


def wrapped(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The same layer on its own, in a nested model, in a wrapper, and deep in another layer's settings."""
    model = obj("Sequential", {"name": "inner", "layers": [layer]}, "keras")
    return [
        obj("Sequential", {"name": "m", "layers": [layer]}, "keras"),
        obj("Sequential", {"name": "m", "layers": [model]}, "keras"),
        obj("TimeDistributed", {"name": "td", "layer": model}),
        obj("Dense", {"name": "d", "kernel_initializer": obj("Zeros", {"x": [[{"y": layer}]]}, "keras.initializers")}),
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_fault_49_layers_that_carry_code_are_refused_wherever_they_stand(name: str) -> None:
    """In nested models, wrappers and settings alike; one line says which layer, which class and what to do."""
    for tree in wrapped(obj(name, {"name": "bad"})):
        with pytest.raises(ModelRefused, match=rf"bad': keras\.layers\.{name} .*allow_modules") as caught:
            check_tree(tree)
        assert "\n" not in str(caught.value)


def test_the_refusal_shows_the_way_to_a_nested_layer() -> None:
    """outer/inner/layer, as freeze patterns write it."""
    inner = keras.Sequential([layers.Input((2, 2)), layers.TimeDistributed(layers.Lambda(abs, name="f"), name="each")])
    inner.name = "inner"
    with pytest.raises(ModelRefused, match="layer 'inner/each/f'"):
        build(to_json(keras.Sequential([layers.Input((2, 2)), inner])))


@keras.saving.register_keras_serializable("elsewhere")
class Elsewhere(keras.layers.Layer):
    """Registered in this process by whoever; no receiver named this module."""


FOREIGN = [
    obj("Popen", module="subprocess"),
    obj("Dense", module="kerasx.layers"),
    obj("Dense", module="keras_hub.layers"),
    obj("load_model", module="keras.models"),
    obj("load_model", module="keras.saving"),
    obj("FeatureSpace", module="keras.utils"),
    obj("Function", module="keras.src.ops.function", registered_name="Function"),
    obj("Operation", module="keras.src.ops.operation", registered_name="Operation"),
    obj("Adam", module="keras.optimizers"),
    obj("InputSpec", module="keras.layers"),
    obj("np", module="keras.src.ops.numpy"),
    obj("Sequential", module="keras.src.models.not_imported_yet"),
    obj("Elsewhere", module=__name__, registered_name="elsewhere>Elsewhere"),
    obj("Dense", registered_name="elsewhere>Elsewhere"),  # Keras would take the registered class
    obj("function", "system", "os"),
    obj("function", "eval", "builtins"),
    obj("function", "get_file", "keras.utils"),
    obj("function", "relu", "builtins", registered_name="elsewhere>relu"),
    {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}},
    {"class_name": "__typespec__", "spec_name": "x", "module": "os", "config": [], "registered_name": None},
    {"class_name": "__tensor__", "config": {"value": 1, "dtype": "string"}},
    {"class_name": "__numpy__", "config": {"value": 1, "dtype": "object"}},
    {"class_name": "__keras_tensor__", "config": {"shape": [1]}, "module": "os"},
    {"class_name": "Dense", "config": {"units": 1}},  # the form of older Keras, read by another reader
    {"module": "keras.layers", "registered_name": None},
    {"registered_name": "elsewhere>Elsewhere"},
    obj("Dense", {"units": 1}, compile_config={"loss": "mse"}),
    obj("Dense", {"units": 1}, shared_object_id=1),
    obj("Dense", ["not", "a", "dict"]),
    obj(["Dense"]),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("bad", FOREIGN, ids=lambda b: f"{b.get('module')}.{b.get('class_name')}")
def test_objects_that_are_not_keras_own_are_refused(bad: dict[str, Any]) -> None:
    """Other modules, classes of Keras that are no layers, functions, code, and objects that are not complete."""
    for tree in wrapped(bad):
        with pytest.raises(ModelRefused):
            check_tree(tree)


def test_no_module_is_imported_for_a_foreign_name() -> None:
    """A name in the architecture imports nothing, even inside Keras' own packages."""
    for module in ("keras.src.applications.nasnet_x", "antigravity", "this"):
        with pytest.raises(ModelRefused):
            check_tree(obj("Layer", module=module))
        assert module not in sys.modules


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"activation": "os.system"}, "activation 'os.system' is not one of Keras' own"),
        ({"kernel_initializer": "elsewhere>x"}, "kernel_initializer"),
        ({"bias_regularizer": "nothing"}, "keras.regularizers"),
        ({"kernel_constraint": "nothing"}, "keras.constraints"),
    ],
)
def test_names_in_place_of_objects_are_keras_own(settings: dict[str, str], says: str) -> None:
    """Keras looks such names up in what is registered; only its own are taken."""
    with pytest.raises(ModelRefused, match=says):
        check_tree(obj("Dense", {"name": "d", "units": 1, **settings}))
    check_tree(obj("Dense", {"units": 1, "activation": "relu", "kernel_initializer": "HeNormal"}))


@pytest.mark.parametrize("name", _LOOKUPS)
@pytest.mark.parametrize("vocabulary", ["/etc/passwd", None])
def test_vocabularies_are_lists(name: str, vocabulary: str | None) -> None:
    """A path would be opened; none means that it lies in a file of the model's."""
    with pytest.raises(ModelRefused, match="make it with a list"):
        check_tree(obj(name, {"name": "words", "vocabulary": vocabulary}))
    check_tree(obj(name, {"vocabulary": ["a", "b"]}))


def test_no_allowed_layer_reads_files_or_runs_code() -> None:
    """Holds the closed list against a Keras in which another layer does: then it belongs into REFUSED."""
    signs = ("open(", "gfile", "load_model(", "importlib", "exec(", "eval(", "func_load", "pickle", "get_file")
    found = {
        c.__name__
        for c in _public_classes()
        if c.__module__ != "keras.src.layers.layer"
        and any(sign in inspect.getsource(sys.modules[c.__module__]) for sign in signs)
    }
    assert found <= {*REFUSED, *_LOOKUPS, "Model", "Sequential", "Functional"}


def sample_layers() -> Iterator[tuple[tuple[int, ...], Callable[[Any], Any]]]:
    """Input shapes with what is made of them, over all kinds of layers and graph operations."""
    yield (3,), layers.Dense(2, kernel_regularizer="l2", bias_constraint=keras.constraints.NonNeg())
    yield (3,), layers.Dense(2, activation=keras.activations.gelu, kernel_initializer=keras.initializers.HeNormal(1))
    yield (3,), layers.Dense(2, dtype="mixed_float16")
    yield (3,), layers.PReLU()
    yield (3,), layers.Activation("swish")
    yield (3,), layers.GaussianNoise(0.1, seed=3)
    yield (3,), layers.Discretization([0.0, 1.0])
    yield (3,), layers.Reshape((3, 1))
    yield (3,), lambda x: keras.ops.where(x > 0.5, x, float("-inf"))
    yield (3,), lambda x: keras.ops.einsum("bi,bj->bij", x, x)[:, 1:, ..., ::2]
    yield (3,), lambda x: keras.activations.relu(x, negative_slope=0.1) + keras.ops.softmax(x) * 2
    yield (3,), lambda x: keras.ops.clip(keras.ops.log(keras.ops.cast(x, "float32")), 0, 1)
    yield (4, 3), layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)])
    yield (4, 3), layers.Bidirectional(layers.SimpleRNN(2), backward_layer=layers.SimpleRNN(2, go_backwards=True))
    yield (4, 3), lambda x: layers.MultiHeadAttention(2, 2)(x, x, attention_mask=None)
    yield (4, 3), layers.EinsumDense("abc,cd->abd", output_shape=(None, 2))
    yield (4, 3), layers.TimeDistributed(layers.LayerNormalization())
    yield (4, 3), layers.Conv1D(2, 2, padding="causal")
    yield (4,), layers.Embedding(5, 2, mask_zero=True)
    yield (6, 6, 3), layers.SeparableConv2D(2, 3)
    yield (6, 6, 3), layers.SpectralNormalization(layers.Conv2D(2, 3))
    yield (6, 6, 3), layers.GroupNormalization(3)
    yield (6, 6, 3), layers.RandomFlip(seed=1)
    yield (6, 6, 3), layers.RandomRotation(0.1)
    yield (6, 6, 3), layers.Pipeline([layers.RandomZoom(0.1), layers.Resizing(4, 4)])
    yield (6, 6, 3), layers.GlobalAveragePooling2D()


@pytest.mark.parametrize(("shape", "make"), list(sample_layers()), ids=lambda v: getattr(v, "name", None))
def test_models_of_keras_pass_and_stay_the_same(shape: tuple[int, ...], make: Callable[[Any], Any]) -> None:
    """The list is closed, not narrow: layers, wrappers, policies, seeds and graph operations come back as they were."""
    x = layers.Input(shape)
    text = to_json(keras.Model(x, make(x)))
    assert to_json(build(text, max_parameters=10_000)) == text
    assert check_tree(json.loads(text)) == {}


def own_model(*own: Any) -> str:
    return to_json(keras.Sequential([layers.Input((2,)), *own]))


def test_own_classes_need_their_module_named() -> None:
    """The receiver names modules; the message says so, with the layer and its class."""
    text = own_model(Scale(3.0, name="scale"), Shift(name="shift"), layers.Dense(2, activation=halved))
    with pytest.raises(ModelRefused, match=rf"layer 'scale': {OWN}\.Scale is not a layer of Keras.*allow_modules"):
        build(text)
    for allowed in (OWN, "tests.fedretrain", "tests"):
        model = build(text, [allowed], max_parameters=100)
        assert to_json(model) == text
        assert float(model(keras.ops.zeros((1, 2)))[0, 0]) == pytest.approx(
            float(model.layers[-1](keras.ops.ones((1, 2)))[0, 0])
        )
    for other in ("tests.fedretrain.own", "test", "fedretrain"):
        with pytest.raises((ModelRefused, ConfigurationError)):
            build(text, [other])


def test_own_functions_need_their_module_named() -> None:
    """Keras writes no module for a function, so it is looked for in the named ones alone."""
    for function in (halved, unregistered):
        text = own_model(layers.Dense(2, activation=function, name="d"))
        with pytest.raises(ModelRefused, match=r"layer 'd': function builtins\..* is not an activation of Keras"):
            build(text)
        assert build(text, ["json", OWN]).layers[-1].activation is function


def test_only_what_is_defined_in_a_named_module_is_taken() -> None:
    """Neither a name that is not there, nor one the module merely imported."""
    for name in ("Missing", "Lambda", "np", "keras"):
        with pytest.raises(ModelRefused, match="is not found in the module"):
            check_tree(obj(name, module=OWN, registered_name=name), [OWN])


def test_a_module_that_cannot_be_imported_is_the_operators_error() -> None:
    """It says which key named it and where it was looked for."""
    with pytest.raises(ConfigurationError, match="allow_modules: expected a module that is installed or lies in"):
        check_tree(obj("X", module="no_such_module", registered_name="X"), ["no_such_module"])


def test_a_process_that_works_elsewhere_looks_where_the_command_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that is installed; and a module that is not there is said to be missing there."""
    for name in ("lies_here", "json"):
        (tmp_path / f"{name}.py").write_text("HERE = True\n")
    monkeypatch.setenv(CALLED_FROM, str(tmp_path))
    assert import_named("lies_here", "allow_modules").HERE
    monkeypatch.delitem(sys.modules, "json")
    assert not hasattr(import_named("json", "allow_modules"), "HERE")
    with pytest.raises(ConfigurationError, match=f"installed or lies in {tmp_path}, got 'no_such'"):
        import_named("no_such", "allow_modules")
    assert str(tmp_path) not in sys.path


def test_an_own_class_cannot_take_the_place_of_an_operation() -> None:
    """Keras would look both up under one name."""
    x = layers.Input((2,))
    text = to_json(keras.Model(x, Multiply()(x) * 2.0))
    with pytest.raises(ModelRefused, match="'Multiply' is an operation of Keras and a class of your own"):
        build(text, [OWN])
    build(own_model(Multiply()), [OWN])


def test_a_large_model_passes() -> None:
    """Nested models, wrappers and operations together."""
    assert check_tree(json.loads(to_json(nested()))) == {}
