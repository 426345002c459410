"""Which layers a request would train, found by building its model; nothing the request says about it is believed."""

import math
from collections.abc import Sequence

from fedretrain.contract import CHANGING
from fedretrain.errors import ConfigurationError, DeclinedRequest, ModelRefused
from fedretrain.messages import PrepareRequest


def trained_layers(request: PrepareRequest, allow_modules: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths (outer/inner) of the innermost named layers with variables that would change, in the model's order.

    Raises:
        DeclinedRequest: ``model-refused`` where the model may not be built; ``request-invalid`` where the freeze
            patterns do not fit; ``model-mismatch`` where its variables are not the contract's.
    """
    from fedretrain.architecture import build, named_layers
    from fedretrain.variables import freeze, variable_specs

    specs = request.contract.variables
    try:
        model = build(request.architecture, allow_modules, sum(math.prod(spec.shape) for spec in specs))
        freeze(model, request.freeze)
        found = variable_specs(model, request.strategy)
    except ModelRefused:
        expected = "layers of Keras, or of modules this site allows"
        raise DeclinedRequest("model-refused", "architecture", expected) from None
    except ConfigurationError:
        expected = "patterns that fit layers and leave some to train"
        raise DeclinedRequest("request-invalid", "freeze", expected) from None
    if found != specs:
        raise DeclinedRequest("model-mismatch", "variables", "the frozen model's, as the contract has them")
    holder = {id(variable): path for path, layer in named_layers(model) for variable in layer.variables}
    pairs = zip(model.variables, found, strict=True)
    return tuple(
        dict.fromkeys(holder.get(id(v), model.name) for v, spec in pairs if spec.rule in CHANGING | {"personal"})
    )
