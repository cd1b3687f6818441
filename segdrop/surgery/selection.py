"""Choosing layers of a model: by name, glob, class or predicate."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable

import keras

from ..errors import InputError
from .graph import Part, is_input, layers_by_path

Selector = str | type | Callable[[keras.layers.Layer], bool]


def select(known: dict[str, Part], selector: Selector, view: keras.Model, argument: str) -> list[str]:
    """Paths of the `known` parts of `view` that a selector matches.

    Raises:
        InputError: it matches none; the message lists the nearest names, or the nested model that has it.
        TypeError: it is no selector.
    """
    hits = [path for path, part in known.items() if _matches(selector, path, part.layer, argument)]
    if hits:
        return hits
    advice = f"Nearest: {nearest_names(selector if isinstance(selector, str) else describe_selector(selector), known)}"
    for path, part in layers_by_path(view, nested=True).items():
        if path not in known and any(_matches(selector, p, part.layer, argument) for p in (path, part.layer.name)):
            advice = f"A nested model has it: enter it with nested=True and name {path!r}"
            break
    raise InputError(f"`{argument}` matches no layer of this model: {describe_selector(selector)}. {advice}.")


def select_sites(known: dict[str, Part], selectors, view: keras.Model) -> list[str]:
    """Paths of all layers that the selectors match, to put something behind each.

    Raises:
        InputError: no selector, one that matches nothing, a layer matched twice, an input, or a layer that does not
            give one float tensor.
    """
    chosen = [path for selector in as_selectors(selectors, "sites") for path in select(known, selector, view, "sites")]
    if not chosen:
        raise InputError("`sites` is empty; name at least one layer.")
    for i, path in enumerate(chosen):
        if path in chosen[:i]:
            raise InputError(f"`sites` names a layer twice: {path!r}.")
        if is_input(known[path].layer):
            raise InputError(f"Site {path!r} is an input; name the layers that come after it.")
        if not _gives_float(known[path]):
            fit = [p for p, part in known.items() if _gives_float(part) and not is_input(part.layer)]
            raise InputError(
                f"The output of site {path!r} is not one float tensor; nearest that is: {nearest_names(path, fit)}."
            )
    return chosen


def as_selectors(selectors, argument: str) -> list[Selector]:
    """One selector or several as a list."""
    if isinstance(selectors, (str, keras.layers.Layer)) or callable(selectors):
        return [selectors]
    if isinstance(selectors, Iterable):
        return list(selectors)
    raise TypeError(f"`{argument}` takes names, globs, layer classes and predicates, got {selectors!r}.")


def describe_selector(selector: Selector) -> str:
    """A selector as messages call it."""
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", repr(selector))


def _matches(selector: Selector, path: str, layer, argument: str) -> bool:
    if isinstance(selector, str) and path == selector:
        return True
    if isinstance(selector, keras.layers.Layer):
        return layer is selector
    if is_input(layer):  # no site, so only named whole, which is an error
        return False
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(path, selector)
    if isinstance(selector, type):
        return isinstance(layer, selector)
    if selector is activations:
        return activations(layer)
    if callable(selector):
        return isinstance(layer, keras.layers.Layer) and bool(selector(layer))
    raise TypeError(f"`{argument}` takes names, globs, layer classes and predicates, got {selector!r}.")


def _gives_float(part: Part) -> bool:
    return all(len(tensors) == 1 and keras.backend.is_float_dtype(tensors[0].dtype) for tensors in part.outputs)


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A phrase that lists the known names most like `name`."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, 3, cutoff=0.0) or known[:3])


def activations(layer) -> bool:
    """Whether a layer ends in a non-linear activation: a selector for `sites`.

    Layers that are activations (ReLU, LeakyReLU, PReLU, Activation, ...), operations such as `keras.ops.relu`, and
    layers with a fused one (`Conv2D(activation="relu")`, `Dense(activation="relu")`). Sigmoid and softmax do not
    count: they make gates and probabilities.

    Example:
        >>> hidden, last = keras.layers.Dense(3, "relu"), keras.layers.Dense(1, "sigmoid")
        >>> model = keras.Sequential([keras.Input((4,)), hidden, last])
        >>> dropped = segdrop.insert_dropout(model, segdrop.activations, 0.1)
        >>> segdrop.dropout_table(dropped)[0]["after"] == hidden.name, len(segdrop.dropout_table(dropped))
        (True, 1)
    """
    if isinstance(layer, keras.layers.Softmax):
        return False
    if isinstance(layer, (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU, keras.layers.ELU)):
        return True
    if isinstance(layer, keras.layers.Layer):
        function = None if isinstance(layer, keras.layers.RNN) else getattr(layer, "activation", None)
        name = getattr(function, "__name__", type(function).__name__ if function else "")
    else:  # an operation of keras.ops in the graph, called after its function
        name = type(layer).__name__
    return name.lower().replace("_", "") in _ACTIVATIONS


_ACTIVATIONS = frozenset(
    "relu relu6 elu selu celu gelu silu swish hardsilu hardswish mish leakyrelu prelu tanh hardtanh softplus softsign "
    "logsigmoid glu squareplus exponential tanhshrink hardshrink softshrink sparseplus threshold".split()
)
