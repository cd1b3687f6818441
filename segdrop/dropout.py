"""Insertion of dropout layers into an existing functional Keras model."""

import difflib
import fnmatch
import zlib
from collections.abc import Iterable, Mapping

import keras

from .config import check_rate
from .errors import InputError

KINDS = {"element": keras.layers.Dropout, "spatial": keras.layers.SpatialDropout2D}


def insert_dropout(
    model: keras.Model,
    sites: str | Iterable[str] | Mapping[str, float],
    rate: float | None = None,
    *,
    kind: str = "element",
    bypass: str | Iterable[str] = (),
    seed: int | None = None,
) -> keras.Model:
    """Return a copy of `model` with a dropout layer after each of the layers in `sites`.

    The copy has its own variables holding the same values; `model` is left as it is. Dropout acts in
    training mode only, so inference gives exactly what `model` gives. Weight order, paths and layer
    names are those of `model`, hence weight files load both ways. The copy is not compiled.

    Args:
        model: a functional or Sequential Keras 3 model, built.
        sites: layer names or globs (`"stage3_*_relu2"`), or a mapping from them to a rate each. The new
            layer after layer `L` is called `L_dropout`.
        rate: probability of dropping, in [0, 1). Left out when `sites` is a mapping.
        kind: `"element"` drops single values (`keras.layers.Dropout`); `"spatial"` drops whole feature
            maps (`keras.layers.SpatialDropout2D`) and needs 4-D outputs (N, H, W, C).
        bypass: names or globs of layers that go on receiving a site's output as it was *before* dropout.
        seed: makes the masks reproducible; each site draws from a stream of its own, which depends on
            `seed` and the site's place in the order of `sites`.

    Returns:
        A new `keras.Model` of Keras's own layers; it saves to `.keras` and loads in safe mode.

    Raises:
        InputError: a selector that matches no layer, a site named twice or already followed by dropout, a
            rate outside [0, 1), a site whose output does not suit `kind`.
        TypeError: `model` is not a functional or Sequential Keras 3 model.
    """
    model = _functional_view(model)
    if kind not in KINDS:
        raise InputError(f"`kind` must be one of {', '.join(KINDS)}, got kind={kind!r}.")
    rates = _resolve_sites(model, sites, rate)
    names = {layer.name for layer in model.layers}
    for name in rates:
        _check_site(model.get_layer(name), kind)
        if f"{name}_dropout" in names:
            raise InputError(f"Site {name!r} is already followed by dropout; insert into the plain model.")
    bypass = set(_match_layers(model, [bypass] if isinstance(bypass, str) else bypass, "bypass"))
    # Seeds follow the order of the sites, not their names: Keras numbers unnamed layers by a global counter.
    order = {name: index for index, name in enumerate(rates)}
    # The tensor before dropout, by the identity of the one after it, which is kept alive beside it.
    undropped: dict[int, tuple] = {}

    def call(layer, *args, **kwargs):
        if layer.name in bypass:
            args, kwargs = keras.tree.map_structure(
                lambda t: undropped[id(t)][0] if id(t) in undropped else t, (args, kwargs)
            )
        output = layer(*args, **kwargs)
        if layer.name not in rates:
            return output
        dropout = KINDS[kind](
            rates[layer.name],
            seed=None if seed is None else zlib.crc32(f"{seed}/{order[layer.name]}".encode()),
            name=f"{layer.name}_dropout",
            # The compute dtype, not the policy: SpatialDropout2D stores only a dtype in its config, so a
            # mixed policy would come back from disk as float32. The layer has no weights to keep in float32.
            dtype=output.dtype,
        )
        dropped = dropout(output)
        undropped[id(dropped)] = (output, dropped)
        return dropped

    copy = keras.models.clone_model(model, clone_function=_copy_layer, call_function=call)
    for layer in model.layers:
        if layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A phrase that lists the known names most like `name`."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, 3, cutoff=0.0) or known[:3])


def _functional_view(model) -> keras.Model:
    """An uncompiled functional model over the layers of `model`: one form for Sequential and functional models."""
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if isinstance(model, keras.Model):
        try:
            return keras.Model(model.input, model.output, name=model.name)
        except (AttributeError, ValueError):
            pass
    raise TypeError(
        "`model` must be a functional or built Sequential Keras 3 model, "
        f"got {type(model).__module__}.{type(model).__name__}."
    )


def _resolve_sites(model, sites, rate) -> dict[str, float]:
    """Map the name of every matched layer to its rate."""
    if isinstance(sites, Mapping):
        if rate is not None:
            raise InputError(f"`rate` must be left out when `sites` maps names to rates, got rate={rate!r}.")
        by_pattern = {pattern: check_rate(value) for pattern, value in sites.items()}
    else:
        patterns = [sites] if isinstance(sites, str) else list(sites)
        if len(set(patterns)) < len(patterns):
            twice = next(p for p in patterns if patterns.count(p) > 1)
            raise InputError(f"`sites` names a layer twice: {twice!r}.")
        by_pattern = dict.fromkeys(patterns, check_rate(rate))
    if not by_pattern:
        raise InputError("`sites` is empty; name at least one layer.")
    rates: dict[str, float] = {}
    for pattern, value in by_pattern.items():
        for name in _match_layers(model, [pattern], "sites"):
            if name in rates:
                raise InputError(f"`sites` names a layer twice: {name!r}.")
            rates[name] = value
    return rates


def _match_layers(model, patterns: Iterable[str], argument: str) -> list[str]:
    names = [layer.name for layer in model.layers]
    matched = []
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise InputError(
                f"`{argument}` matches no layer of this model: {pattern!r}. Nearest: {nearest_names(pattern, names)}."
            )
        matched += hits
    return matched


def _check_site(layer, kind: str) -> None:
    if isinstance(layer, keras.layers.InputLayer):
        raise InputError(f"Site {layer.name!r} is an input; name the layers that come after it.")
    output = layer.output
    if not hasattr(output, "dtype") or not keras.backend.is_float_dtype(output.dtype):
        raise InputError(f"The output of site {layer.name!r} is not one float tensor; choose another layer.")
    if kind == "spatial" and len(output.shape) != 4:
        raise InputError(
            f"kind='spatial' needs 4-D outputs (N, H, W, C); site {layer.name!r} gives {tuple(output.shape)}."
        )


def _copy_layer(layer):
    copy = layer.__class__.from_config(layer.get_config())
    # Some of Keras's layers (SpatialDropout2D) leave the policy out of their config.
    if isinstance(layer, keras.Layer) and copy.compute_dtype != layer.compute_dtype:
        copy.dtype_policy = layer.dtype_policy
    return copy
