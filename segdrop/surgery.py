"""Surgery on functional Keras models: copying the graph with layers put in, taken out or exchanged."""

import contextlib
import dataclasses
import difflib
import fnmatch
import warnings
from collections.abc import Callable, Iterable

import keras

from .errors import InputError

Selector = str | type | Callable[[keras.layers.Layer], bool]
Factory = Callable[[keras.layers.Layer, keras.KerasTensor], keras.layers.Layer]


def insert_layers(
    model: keras.Model,
    sites: Selector | Iterable[Selector],
    factory: Factory,
    *,
    bypass: Selector | Iterable[Selector] = (),
    nested: bool = False,
) -> keras.Model:
    """Return a copy of `model` with a new layer after each of the layers in `sites`.

    The copy has its own variables holding the same values, and the layer names, weight paths and `trainable` flags
    of `model`, which is left as it is. The copy is not compiled: loss and metrics are the caller's to give again.
    Weight files load both ways, unless Keras orders the layers of the copy differently (networks with parallel
    branches, such as Inception's): a warning says so then.

    Args:
        model: a functional or built Sequential Keras 3 model.
        sites: names or globs (`"stage3_*_relu2"`), layer classes, predicates of a layer, or several of them.
        factory: called once per site with the site's layer and the symbolic tensor that it gives; returns the
            layer to put behind it. Where a site's layer is called several times, so is the new layer.
        bypass: selectors of layers that go on receiving a site's output as it was before the new layer.
        nested: enter models within the model. Their layers are called by path, `"backbone/conv1"`.

    Raises:
        InputError: a selector that matches no layer, a site named twice, an input as site, or a site whose output
            is not one float tensor.
        TypeError: `model` is not a functional or Sequential Keras 3 model.
    """
    view = functional_view(model)
    layers = layer_paths(view, nested)
    makers = {
        path: lambda output, layer=layers[path]: factory(layer, output) for path in select_sites(layers, sites, view)
    }
    return insert_after(view, makers, select(layers, bypass, view, "bypass"))


def insert_after(
    view: keras.Model,
    makers: dict[str, Callable[[keras.KerasTensor], keras.layers.Layer]],
    bypass: Iterable[str] = (),
) -> keras.Model:
    """`insert_layers` for sites and bypasses that are already resolved to paths."""
    bypass = set(bypass)
    inserted: dict[str, keras.layers.Layer] = {}
    # The tensor before the new layer, by the identity of the one after it, which is kept alive beside it.
    before: dict[int, tuple] = {}

    def call(path, layer, args, kwargs):
        if path in bypass:
            args, kwargs = keras.tree.map_structure(
                lambda t: before[id(t)][0] if id(t) in before else t, (args, kwargs)
            )
        output = layer(*args, **kwargs)
        if path not in makers:
            return output
        if path not in inserted:
            inserted[path] = makers[path](output)
        after = inserted[path](output)
        before[id(after)] = (output, after)
        return after

    copy = rebuild(view, call)
    known = {layer.name for layer in view.layers}
    if [name for name in _weighted_layers(copy) if name in known] != _weighted_layers(view):
        warnings.warn(
            "Keras orders the layers of the new model differently, because only some of several parallel branches have "
            "become longer: weight files do not load between it and the original. Exchange them by way of "
            "segdrop.remove_dropout.",
            stacklevel=3,
        )
    return copy


def _weighted_layers(model) -> list[str]:
    return [layer.name for layer in model.layers if layer.weights]


def rebuild(
    model: keras.Model,
    call: Callable = lambda path, layer, args, kwargs: layer(*args, **kwargs),
    *,
    convert: Callable[[str, keras.layers.Layer], keras.layers.Layer] | None = None,
) -> keras.Model:
    """Call the layers of `model`, and of the models within it, anew on new inputs.

    Args:
        call: makes each call, given the layer's path, the layer, and the call's arguments.
        convert: gives the layer that stands for one of `model`, given its path. By default a copy of it with the
            same weights.
    """
    return _rebuild(functional_view(model), call, convert, "")


def _rebuild(view, call, convert, home):
    copies = []

    def convert_layer(layer):
        if is_model(layer):
            inner = _rebuild(functional_view(layer), call, convert, f"{home}{layer.name}/")
            if isinstance(layer, keras.Sequential):  # the class is in the layout of weight files
                inner = _with_flag(keras.Sequential(inner.layers, name=layer.name), layer)
            return inner
        if convert:
            return convert(home + layer.name, layer)
        copy = copy_layer(layer)
        initializers = {name: value for name, value in vars(copy).items() if name.endswith("_initializer")}
        for name in initializers:  # values that are about to be replaced need not be drawn
            setattr(copy, name, keras.initializers.Zeros())
        copies.append((layer, copy, initializers))
        return copy

    # Weights are called after the scopes that their layer was built in: those of NASNet's cells, for instance.
    scopes = {layer.name: getattr(layer, "path", None) or "" for layer in view.operations}

    def call_layer(layer, *args, **kwargs):
        with contextlib.ExitStack() as stack:
            for scope in scopes[layer.name].split("/")[:-1]:
                stack.enter_context(keras.name_scope(scope))
            return call(home + layer.name, layer, args, kwargs)

    copy = keras.models.clone_model(
        view,
        # Keras would call the inputs after their tensors.
        input_tensors=keras.tree.map_structure(_new_input, view.input),
        clone_function=convert_layer,
        call_function=call_layer,
    )
    _with_flag(copy, view)
    for layer, twin, initializers in copies:
        for name, initializer in initializers.items():
            setattr(twin, name, initializer)
        # Layer by layer, so that there is never more than the copy beside the original.
        if getattr(layer, "weights", None):
            twin.set_weights(layer.get_weights())
        if hasattr(twin, "finalize_state"):  # Normalization computes with what it derives from its weights
            twin.finalize_state()
        for ours, theirs in zip(getattr(twin, "weights", ()), getattr(layer, "weights", ()), strict=True):
            ours.trainable = theirs.trainable  # the layer's own flag is in its configuration
    return copy


def _new_input(tensor):
    layer = tensor._keras_history.operation
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name, optional=layer.optional)


def copy_layer(layer, **changes):
    """A layer of the same class and configuration but for `changes`, with weights of its own."""
    if isinstance(layer, keras.layers.Lambda):  # its config is marshalled code, which safe mode refuses
        return keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    copy = layer.__class__.from_config({**layer.get_config(), **changes})
    # Some of Keras's layers (SpatialDropout2D) leave the policy out of their config.
    if isinstance(layer, keras.layers.Layer) and copy.compute_dtype != layer.compute_dtype:
        copy.dtype_policy = layer.dtype_policy
    return copy


def functional_view(model) -> keras.Model:
    """An uncompiled functional model over the layers of `model`: one form for Sequential and functional models."""
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if isinstance(model, keras.Model):
        try:
            if isinstance(model, keras.Sequential):
                return _with_flag(keras.Model(model.inputs[0], model.outputs[0], name=model.name), model)
            return _with_flag(keras.Model(model.input, model.output, name=model.name), model)
        except (AttributeError, ValueError, TypeError):
            pass
    elif kind.startswith(("tf_keras.", "keras.engine.", "keras.src.engine.")):
        kind += ", of legacy Keras 2"
    raise TypeError(f"`model` must be a functional or built Sequential Keras 3 model, got {kind}.")


def _with_flag(view, model):
    view._trainable = model.trainable  # the property would set the flags of all layers
    return view


def _is_input(layer) -> bool:
    return isinstance(layer, keras.layers.InputLayer)


def is_model(layer) -> bool:
    """Whether a layer is a model that can be entered."""
    return isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and hasattr(layer, "operations"))


def layer_paths(view: keras.Model, nested: bool = False) -> dict:
    """The layers and operations of a model by path, in its order; those within nested models as `model/layer`."""
    paths = {}
    for layer in view.operations:
        paths[layer.name] = layer
        if nested and is_model(layer):
            inner = layer_paths(functional_view(layer), True)
            paths |= {f"{layer.name}/{path}": one for path, one in inner.items() if not _is_input(one)}
    return paths


def select(layers: dict, selectors: Selector | Iterable[Selector], view: keras.Model, argument: str) -> list[str]:
    """Paths of the layers of `view` that the selectors match, each of which must match one."""
    chosen: list[str] = []
    for selector in [selectors] if isinstance(selectors, str) or callable(selectors) else selectors:
        hits = [path for path, layer in layers.items() if _matches(selector, path, layer)]
        if not hits:
            shown = repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", repr(selector))
            advice = _advice(selector, layers, layer_paths(view, nested=True))
            raise InputError(f"`{argument}` matches no layer of this model: {shown}. {advice}.")
        chosen += hits
    return chosen


def select_sites(layers: dict, selectors: Selector | Iterable[Selector], view: keras.Model) -> list[str]:
    """As `select`, for layers that something can be put behind, none of them matched twice."""
    chosen = select(layers, selectors, view, "sites")
    if not chosen:
        raise InputError("`sites` is empty; name at least one layer.")
    for i, path in enumerate(chosen):
        if path in chosen[:i]:
            raise InputError(f"`sites` names a layer twice: {path!r}.")
        if _is_input(layers[path]):
            raise InputError(f"Site {path!r} is an input; name the layers that come after it.")
        if not _gives_float(layers[path]):
            fit = [p for p, one in layers.items() if _gives_float(one) and not _is_input(one)]
            raise InputError(
                f"The output of site {path!r} is not one float tensor; nearest that is: {nearest_names(path, fit)}."
            )
    return chosen


def _matches(selector: Selector, path: str, layer) -> bool:
    if isinstance(selector, str) and path == selector:
        return True
    if _is_input(layer):  # no site, so only named whole, which is an error
        return False
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(path, selector)
    if isinstance(selector, type):
        return isinstance(layer, selector)
    if selector is activations:
        return activations(layer)
    if callable(selector):
        return isinstance(layer, keras.layers.Layer) and bool(selector(layer))
    raise TypeError(f"`sites` takes names, globs, layer classes and predicates, got {selector!r}.")


def _advice(selector, layers: dict, nested: dict) -> str:
    for path, layer in nested.items():
        if path not in layers and (_matches(selector, path, layer) or _matches(selector, layer.name, layer)):
            return f"A nested model has it: enter it with nested=True and name {path!r}"
    name = selector if isinstance(selector, str) else getattr(selector, "__name__", "")
    return f"Nearest: {nearest_names(name, layers)}"


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A phrase that lists the known names most like `name`."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, 3, cutoff=0.0) or known[:3])


def activations(layer) -> bool:
    """Whether a layer ends in a non-linear activation: a selector for `sites`.

    Layers that are activations (ReLU, LeakyReLU, PReLU, Activation, ...), operations such as `keras.ops.relu`, and
    layers with a fused one (`Conv2D(activation="relu")`, `Dense(activation="relu")`). Sigmoid and softmax do not
    count: they make gates and probabilities.
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


def _gives_float(layer) -> bool:
    output = layer.output
    return hasattr(output, "dtype") and keras.backend.is_float_dtype(output.dtype)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer in a model's graph; tensors are numbers that are unique in one `trace`."""

    path: str
    layer: keras.layers.Layer
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple, ...]
    """Shapes of the outputs, the batch's axis first; None where unknown."""


def trace(model: keras.Model, image_size: tuple[int, int] | None = None) -> list[Call]:
    """The calls of a model's layers, those within nested models too, each after what it needs.

    Args:
        image_size: height and width for inputs of dynamic size, from which all shapes are then worked out.
    """
    view = functional_view(model)
    shapes = [tuple(tensor.shape) for tensor in view.inputs]
    if image_size:
        # Height and width are the unknown axes after the batch's.
        shapes = [
            (1, *(next(sides) if side is None else side for side in shape[1:]))
            for shape in shapes
            for sides in [iter([*image_size, *[1] * len(shape)])]
        ]
    calls: list[Call] = []
    _trace(view, list(range(len(shapes))), shapes, bool(image_size), "", calls, iter(range(len(shapes), 10**9)))
    return calls


def call_nodes(view: keras.Model) -> list:
    """Keras's records of the calls in a functional model, each after what it needs; nested models count as a layer."""
    # Keras has no public view of them; `layer.input` knows the first call of a layer only, in whichever model.
    nodes = [node for depth in sorted(view._nodes_by_depth, reverse=True) for node in view._nodes_by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def _trace(view, inputs, input_shapes, work_out, home, calls, numbers) -> list[int]:
    nodes = call_nodes(view)
    tensors = [tensor for node in nodes for tensor in node.output_tensors]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if work_out:
        given = input_shapes if len(input_shapes) > 1 else input_shapes[0]
        shapes = [tuple(shape) for shape in keras.Model(view.inputs, tensors).compute_output_shape(given)]
    shape_of = dict(zip(map(id, [*view.inputs, *tensors]), [*input_shapes, *shapes], strict=True))
    known = dict(zip(map(id, view.inputs), inputs, strict=True))
    for node in nodes:
        layer, received = node.operation, [known[id(tensor)] for tensor in node.input_tensors]
        if is_model(layer):
            inner = [shape_of[id(tensor)] for tensor in node.input_tensors]
            made = _trace(functional_view(layer), received, inner, work_out, f"{home}{layer.name}/", calls, numbers)
        else:
            made = [next(numbers) for _ in node.output_tensors]
            given = tuple(shape_of[id(tensor)] for tensor in node.output_tensors)
            calls.append(Call(home + layer.name, layer, tuple(received), tuple(made), given))
        known.update(zip(map(id, node.output_tensors), made, strict=True))
    return [known[id(tensor)] for tensor in view.outputs]


def downstream(calls: list[Call], tensors: Iterable[int]) -> list[Call]:
    """The calls whose outputs depend on any of the tensors, in the order of `calls`."""
    changed, found = set(tensors), []
    for call in calls:
        if changed.intersection(call.inputs):
            changed.update(call.outputs)
            found.append(call)
    return found


def upstream(calls: list[Call], tensors: Iterable[int]) -> list[Call]:
    """The calls that the tensors depend on, those that give them included, in the order of `calls`."""
    needed, found = set(tensors), []
    for call in reversed(calls):
        if needed.intersection(call.outputs):
            needed.update(call.inputs)
            found.append(call)
    return found[::-1]
