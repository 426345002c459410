"""Which objects an architecture may be made of, decided before Keras sees it.

Keras' ``safe_mode`` is not a sandbox: it lets layers pass that load files or import code. The rule here is closed.
Every JSON object with one of the keys ``class_name``, ``module``, ``registered_name`` must be complete and be

- a public class of ``keras.layers`` (but those in ``REFUSED``), ``keras.initializers``, ``.regularizers``,
  ``.constraints``, ``.dtype_policies``, ``.quantizers`` or a ``keras.random.SeedGenerator``;
- ``Functional``, ``Sequential`` or ``Model``, whose layers are checked the same way;
- an operation of a functional graph, a class of ``keras.src.ops`` or ``keras.src.activations``;
- a function of ``keras.activations``;
- a plain value in Keras' own wrapping: a symbolic tensor, slice, ellipsis or numeric array; or
- a class or function of a module the receiver has installed and named.

Nothing else resolves, names registered elsewhere in the process included, and no module is imported but named ones.
"""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigurationError, ModelRefused

REFUSED = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
"""Public layers that carry code, or open files their configuration names."""

CALLED_FROM = "FEDRETRAIN_CALLED_FROM"
"""Environment: the folder where the user called the command, in processes that work elsewhere."""

MAX_DEPTH = 200
_KEYS = frozenset({"class_name", "module", "registered_name"})
_PLAIN = frozenset({"__keras_tensor__", "__slice__", "__ellipsis__", "__tensor__", "__numpy__"})
_OPERATIONS = ("keras.src.ops.", "keras.src.activations.")
_LOOKUPS = ("StringLookup", "IntegerLookup", "TextVectorization")
_NAME_IT = "install its module wherever the model is trained and name it in allow_modules"
_FAMILIES = ("activation", "constraint", "initializer", "regularizer")
_DTYPES = frozenset(
    {"bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "float16", "float32", "float64"}
)


def check_tree(tree: Any, allow_modules: Sequence[str] = ()) -> dict[str, Any]:
    """Check a parsed architecture against the module's rule.

    Args:
        tree: What ``json.loads`` returned.
        allow_modules: Modules of the receiver's own whose classes may be built, submodules included.

    Returns:
        The receiver's own classes and functions in it, by the names under which Keras looks for them.

    Raises:
        ModelRefused: Names the layer, its class and what to do.
        ConfigurationError: A module under ``allow_modules`` cannot be imported.
    """
    walk = _Walk(tuple(allow_modules))
    walk.visit(tree, "", 0)
    return walk.finish()


def import_named(module: str, key: str) -> Any:
    """Import a module the operator named under ``key``, also from the current folder.

    In a process that works elsewhere that is the folder which the environment's ``CALLED_FROM`` names.

    Raises:
        ConfigurationError: It cannot be imported.
    """
    here = os.environ.get(CALLED_FROM) or str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - the operator's own module can raise anything
        line = str(error).strip().split("\n")[0]
        raise ConfigurationError(
            f"{key}: expected a module that is installed or lies in {here}, got '{module}': "
            f"{type(error).__name__}: {line}"
        ) from None
    finally:
        sys.path.remove(here)


class _Walk:
    """One pass over the tree."""

    def __init__(self, allow_modules: tuple[str, ...]) -> None:
        self._allow_modules = allow_modules
        self._custom: dict[str, Any] = {}  # the receiver's own, by registered name
        self._builtin: set[str] = set()  # registered names under which Keras finds objects of its own

    def visit(self, node: Any, layer: str, depth: int) -> None:
        """Check ``node`` and all below it; ``layer`` is the path of the layer it belongs to, "" for the model."""
        if depth > MAX_DEPTH:
            raise ModelRefused(f"architecture: expected at most {MAX_DEPTH} levels of nesting, got more")
        if isinstance(node, dict) and _KEYS & node.keys():
            layer = self._check_object(node, layer, depth)
        if isinstance(node, dict | list):
            for child in node.values() if isinstance(node, dict) else node:
                self.visit(child, layer, depth + 1)

    def finish(self) -> dict[str, Any]:
        """The receiver's own objects, once it is sure that their names hide nothing of Keras."""
        import keras

        for name in self._builtin & (self._custom.keys() | keras.saving.get_custom_objects().keys()):
            raise ModelRefused(f"architecture: '{name}' is an operation of Keras and a class of your own; rename yours")
        return self._custom

    def _check_object(self, node: dict[str, Any], layer: str, depth: int) -> str:
        """Check one serialized object without its children; returns the path its children belong to."""
        class_name, config = node.get("class_name"), node.get("config")
        if isinstance(class_name, str) and class_name in _PLAIN:
            _check_plain(node, layer)
            return layer
        own_name = config.get("name") if isinstance(config, dict) and depth else None
        path = "/".join(str(part) for part in (layer, own_name) if part)
        if not _is_complete(node):
            raise _refusal(path, str(class_name), "is not written the way this version of Keras does it; save it again")
        if "compile_config" in node or "shared_object_id" in node:
            raise _refusal(path, str(class_name), "carries more than an architecture; see architecture.to_json")
        if class_name == "function":
            self._check_function(node, layer)
            return layer
        found = self._own_class(node, path) or self._builtin_class(node, path)
        return path if _is_operation(found) else layer

    def _builtin_class(self, node: dict[str, Any], path: str) -> type:
        """The class of Keras' own that ``node`` names."""
        module, name = node["module"], node["class_name"]
        found = _keras_class(module, name)
        if found is None or node["registered_name"] not in (None, name):
            raise _refusal(path, f"{module}.{name}", "is not a layer of Keras; if it is your own, " + _NAME_IT)
        if node["registered_name"]:
            self._builtin.add(name)
        if found.__name__ in REFUSED:
            raise _refusal(
                path,
                f"keras.layers.{name}",
                f"carries code or opens files; use a layer class of your own and {_NAME_IT}",
            )
        _check_config(found, node["config"] or {}, path)
        return found

    def _own_class(self, node: dict[str, Any], path: str) -> Any:
        """The receiver's class that ``node`` names, None where its module is not one of the receiver's."""
        module, name, registered = node["module"], node["class_name"], node["registered_name"]
        if not self._is_allowed(module):
            return None
        found = self._find([module], registered, name)
        if not inspect.isclass(found) or not hasattr(found, "from_config"):
            raise _refusal(path, f"{module}.{name}", f"is not found in the module '{module}' that is installed here")
        self._keep(registered, found, path)
        return found

    def _check_function(self, node: dict[str, Any], layer: str) -> None:
        """Functions go by name alone: Keras writes "builtins" as module of all of them."""
        module, name = node["module"], node["config"]
        if module in ("builtins", "keras.activations") and node["registered_name"] in (None, "function", name):
            if name in _known_strings()["activation"]:
                self._builtin.add(name)
                return
            found = self._find(self._allow_modules, name, name.rpartition(">")[2])
            if inspect.isfunction(found):
                self._keep(name, found, layer)
                return
        what = f"function {module}.{name}"
        raise _refusal(layer, what, f"is not an activation of Keras; if it is your own, {_NAME_IT}")

    def _find(self, modules: Sequence[str], registered: str | None, attribute: str) -> Any:
        """What Keras would take: the object registered under a name, else a module's; if it is the receiver's own."""
        import keras

        places = [import_named(module, "allow_modules") for module in modules]
        found = keras.saving.get_registered_object(registered)
        for place in places:
            found = found or getattr(place, attribute, None)
        return found if self._is_allowed(getattr(found, "__module__", None) or "") else None

    def _keep(self, name: str | None, found: Any, path: str) -> None:
        if name is None or self._custom.setdefault(name, found) is not found:
            raise _refusal(
                path, f"{found.__module__}.{found.__name__}", "has no name of its own; register it with Keras"
            )

    def _is_allowed(self, module: str) -> bool:
        return any(module == allowed or module.startswith(f"{allowed}.") for allowed in self._allow_modules)


def _refusal(path: str, what: str, why: str) -> ModelRefused:
    where = f"layer '{path}'" if path else "the model"
    return ModelRefused(f"{where}: {what} {why}")


def _is_complete(node: dict[str, Any]) -> bool:
    """Whether an object has everything Keras' own serialization writes, so that no legacy reader takes it."""
    return (
        {"class_name", "module", "registered_name", "config"} <= node.keys()
        and isinstance(node["class_name"], str)
        and isinstance(node["module"], str)
        and isinstance(node["registered_name"], str | None)
        and isinstance(node["config"], str if node["class_name"] == "function" else dict | None)
    )


def _check_plain(node: dict[str, Any], path: str) -> None:
    config = node.get("config")
    keys = {"class_name", "config"}
    if node.keys() != keys or not isinstance(config, dict) or config.get("dtype", "float32") not in _DTYPES:
        raise _refusal(
            path, str(node["class_name"]), f"is malformed; expected the keys {sorted(keys)} and a numeric dtype"
        )


def _check_config(found: type, config: dict[str, Any], path: str) -> None:
    """Settings of a Keras class that are text and stand for something else: functions by name, files."""
    if found.__name__ in _LOOKUPS and not isinstance(config.get("vocabulary"), list):
        raise _refusal(path, f"keras.layers.{found.__name__}", "takes its vocabulary from a file; make it with a list")
    for key, value in config.items():
        for family in _FAMILIES:
            if key.endswith(family) and isinstance(value, str) and value not in _known_strings()[family]:
                raise _refusal(path, f"{key} '{value}'", f"is not one of Keras' own; see keras.{family}s")


def _keras_class(module: str, name: str) -> type | None:
    """The class Keras itself would find, if it is one the rule allows or refuses by name."""
    from keras.src import api_export

    if module != "keras" and not module.startswith("keras."):
        return None
    found = api_export.get_symbol_from_name(f"{module}.{name}") or vars(sys.modules.get(module, object)).get(name)
    if not inspect.isclass(found):
        return None
    is_operation = found.__module__ == module and module.startswith(_OPERATIONS) and _is_operation(found)
    return found if is_operation or found in _public_classes() else None


def _is_operation(found: Any) -> bool:
    from keras.src.ops.function import Function
    from keras.src.ops.operation import Operation

    return inspect.isclass(found) and issubclass(found, Operation) and found not in (Operation, Function)


@functools.cache
def _public_classes() -> frozenset[type]:
    """Classes by the module's rule, those in ``REFUSED`` included, so that they can be refused by name."""
    import keras
    from keras.src.models.functional import Functional

    spaces = {
        keras.layers: keras.layers.Layer,
        keras.initializers: keras.initializers.Initializer,
        keras.regularizers: keras.regularizers.Regularizer,
        keras.constraints: keras.constraints.Constraint,
        keras.dtype_policies: (keras.dtype_policies.DTypePolicy, keras.dtype_policies.DTypePolicyMap),
        keras.quantizers: keras.quantizers.Quantizer,
    }
    public = {
        c for space, base in spaces.items() for c in vars(space).values() if inspect.isclass(c) and issubclass(c, base)
    }
    return frozenset(public | {keras.random.SeedGenerator, Functional, keras.Sequential, keras.Model})


@functools.cache
def _known_strings() -> dict[str, frozenset[str]]:
    """What Keras takes as a name in place of an object, by the last word of the setting."""
    from keras.src import activations, constraints, initializers, regularizers

    spaces = dict(zip(_FAMILIES, (activations, constraints, initializers, regularizers), strict=True))
    return {family: frozenset(space.ALL_OBJECTS_DICT) for family, space in spaces.items()}
