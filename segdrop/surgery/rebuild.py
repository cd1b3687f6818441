"""Surgery on functional Keras models: copying the graph with layers put in, taken out or exchanged."""

import contextlib
import warnings
from collections.abc import Callable, Iterable

import keras

from ..errors import InputError, first_line
from .graph import Part, functional_view, is_model, layers_by_path, with_flag_of
from .selection import Selector, as_selectors, describe_selector, select, select_sites

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
    branches, such as Inception's): a warning says so then. A `train_step` of the model's own class is not carried over.

    Args:
        model: a functional or built Sequential Keras 3 model.
        sites: names or globs (`"stage3_*_relu2"`), layer classes, predicates of a layer, or several of them.
        factory: called once per site with the site's layer and the symbolic tensor that it gives; returns the
            layer to put behind it. Where a site's layer is called several times, so is the new layer.
        bypass: selectors of layers that go on receiving a site's output as it was before the new layer.
        nested: enter models within the model. Their layers are called by path, `"backbone/conv1"`.

    Raises:
        InputError: a selector that matches no layer, a site named twice, an input as site, or a site whose output
            is not one float tensor; a new layer that changes the tensor's shape; a bypass that has no effect.
        TypeError: `model` is not a functional or Sequential Keras 3 model, or the factory gives no layer.

    Example:
        >>> plain = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> noisy = segdrop.insert_layers(
        ...     plain, "relu1", lambda layer, output: keras.layers.GaussianNoise(0.1, name=f"{layer.name}_noise")
        ... )
        >>> [layer.name for layer in noisy.layers if isinstance(layer, keras.layers.GaussianNoise)]
        ['relu1_noise']
    """
    view = functional_view(model)
    known = layers_by_path(view, nested)
    makers = {
        path: lambda output, layer=known[path].layer: factory(layer, output)
        for path in select_sites(known, sites, view)
    }
    return insert_after(view, known, makers, bypass)


def insert_after(
    view: keras.Model,
    known: dict[str, Part],
    makers: dict[str, Callable[[keras.KerasTensor], keras.layers.Layer]],
    bypass: Selector | Iterable[Selector] = (),
) -> keras.Model:
    """`insert_layers` for sites that are resolved to paths of `known` parts, each with the maker of its layer."""
    bypasses = [(selector, select(known, selector, view, "bypass")) for selector in as_selectors(bypass, "bypass")]
    around = {path for _, paths in bypasses for path in paths}
    bypassed = set()
    inserted: dict[str, keras.layers.Layer] = {}
    # The tensor before the new layer, by the identity of the one after it, which is kept alive beside it.
    before: dict[int, tuple] = {}

    def call(path, layer, args, kwargs):
        if path in around:
            received = [id(tensor) for tensor in keras.tree.flatten((args, kwargs))]
            if before.keys() & set(received):
                bypassed.add(path)
            args, kwargs = keras.tree.map_structure(lambda t: before.get(id(t), (t,))[0], (args, kwargs))
        output = layer(*args, **kwargs)
        if path not in makers:
            return output
        if path not in inserted:
            inserted[path] = _checked(makers[path](output), path, known, inserted)
        after = inserted[path](output)
        if tuple(after.shape) != tuple(output.shape):
            raise InputError(
                f"The layer for site {path!r} must keep the shape {tuple(output.shape)}, it gives {tuple(after.shape)}."
            )
        before[id(after)] = (output, after)
        return after

    copy = rebuild(view, call)
    for selector, paths in bypasses:
        if not bypassed & set(paths):
            raise InputError(
                f"`bypass` {describe_selector(selector)} has no effect: none of its layers receives a site's output "
                "directly."
            )
    order = _weighted_paths(view)
    if [path for path in _weighted_paths(copy) if path in order] != order:
        warnings.warn(
            "Keras orders the layers of the new model differently, because only some of several parallel branches have "
            "become longer: weight files do not load between it and the original. Exchange them by way of "
            "segdrop.remove_dropout.",
            stacklevel=3,
        )
    return copy


def _checked(layer, path: str, known, inserted):
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"`factory` must give a Keras layer, got {layer!r} for site {path!r}.")
    home = path.rpartition("/")[0]
    taken = {p.rpartition("/")[2] for p in known if p.rpartition("/")[0] == home}
    taken |= {earlier.name for p, earlier in inserted.items() if p.rpartition("/")[0] == home}
    if layer.name in taken:
        raise InputError(f"The layer for site {path!r} needs a name that the model does not have: {layer.name!r}.")
    return layer


def _weighted_paths(view) -> list[str]:
    return [path for path, part in layers_by_path(view, nested=True).items() if getattr(part.layer, "weights", ())]


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

    Raises:
        InputError: a layer cannot be copied, or has weights in common with another by being part of both.
        TypeError: `model` is not a functional or Sequential Keras 3 model.
    """
    view = functional_view(model)
    copies: list[tuple] = []
    copy = _rebuild(view, call, convert, "", copies, {})
    _check_sharing(copies)
    for layer, twin, initializers in copies:
        for name, initializer in initializers.items():
            setattr(twin, name, initializer)
        # Layer by layer, so that there is never more than the copy beside the original.
        if getattr(layer, "weights", None):
            twin.set_weights(layer.get_weights())
        if hasattr(twin, "finalize_state"):  # Normalization computes with what it derives from its weights
            twin.finalize_state()
        _match_flags(layer, twin)
    return copy


def _rebuild(view, call, convert, home, copies, done):
    """`done` holds the layers that are converted already: one may be part of several models."""

    def convert_layer(layer):
        if id(layer) not in done:
            done[id(layer)] = convert_new(layer)
        return done[id(layer)]

    def convert_new(layer):
        if is_model(layer):
            inner = _rebuild(functional_view(layer), call, convert, f"{home}{layer.name}/", copies, done)
            if isinstance(layer, keras.Sequential):  # the class is in the layout of weight files
                inner = with_flag_of(layer, keras.Sequential(inner.layers, name=layer.name))
            return inner
        if convert:
            return convert(home + layer.name, layer)
        if hasattr(layer, "adapt") and not isinstance(layer, keras.layers.Normalization):
            return layer  # what a vocabulary or bins have adapted to is not in weights; such layers do not train
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
    return with_flag_of(view, copy)


def _check_sharing(copies: list[tuple]) -> None:
    """A layer that is in the graph and in a wrapper, too, would be copied twice and its weights untied."""
    owner: dict[int, str] = {}
    for layer, _, _ in copies:
        for weight in getattr(layer, "weights", ()):
            owner_name = owner.setdefault(id(weight), layer.name)
            if owner_name != layer.name:
                raise InputError(
                    f"Layers {owner_name!r} and {layer.name!r} have the weight {weight.path!r} in common, one being "
                    "part of the other; a copy would untie it. Call the layer itself in both places."
                )


def _match_flags(layer, twin) -> None:
    """The `trainable` flags of a layer, of the layers it is made of, and of their weights."""
    if not isinstance(layer, keras.layers.Layer):
        return
    for theirs, ours in zip(layer._flatten_layers(), twin._flatten_layers(), strict=True):
        ours._trainable = theirs.trainable  # the property would set those of its weights and parts
    for theirs, ours in zip(layer.weights, twin.weights, strict=True):
        ours.trainable = theirs.trainable


def _new_input(tensor):
    layer = tensor._keras_history.operation
    return keras.Input(
        batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name, optional=layer.optional, sparse=tensor.sparse
    )


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
    try:
        copy = layer.__class__.from_config({**layer.get_config(), **changes})
    except Exception as error:  # whatever a layer's own code raises
        raise InputError(
            f"Layer {layer.name!r} cannot be copied from its configuration ({first_line(error)}); register "
            "its class and functions with keras.saving.register_keras_serializable, or give it a get_config."
        ) from error
    copy.name = layer.name  # a layer's own get_config may leave it out
    # Some of Keras's layers (SpatialDropout2D) leave the policy out of their config.
    if isinstance(layer, keras.layers.Layer) and copy.compute_dtype != layer.compute_dtype:
        copy.dtype_policy = layer.dtype_policy
    return copy


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of `model` with equal weights whose layers all compute in float32, whatever their policy.

    Raises:
        InputError: a layer cannot be copied.
        TypeError: `model` is not a functional or Sequential Keras 3 model.
    """
    copy = rebuild(model)
    for layer in copy._flatten_layers():
        layer.dtype_policy = "float32"
    return rebuild(copy)  # the tensors of the first copy are still of the old dtypes
