"""Dropout layers of the user's own: how they are made, and what they must be."""

import inspect
from collections.abc import Callable

import keras
import numpy as np

from ..errors import InputError, first_line
from ..layers import check_kind
from .rebuild import copy_layer

Maker = Callable[..., keras.layers.Layer]  # a class of layers, too


def resolve_layer(
    dropout_layer: Maker | None,
    kind: str | None,
    *,
    block_size: int | None,
    shared_across_batch: bool,
    adjustable: bool,
) -> str | None:
    """The kind of dropout that is asked for; None for layers of the user's own.

    Raises:
        InputError: an unknown kind, something that makes no layers, or an option that is not for what is asked for.
    """
    if dropout_layer is None:
        kind = "element" if kind is None else kind
        check_kind(kind, block_size)
        return kind
    is_class = isinstance(dropout_layer, type)
    if not (issubclass(dropout_layer, keras.layers.Layer) if is_class else callable(dropout_layer)) or isinstance(
        dropout_layer, keras.layers.Layer
    ):
        raise InputError(
            "`dropout_layer` must be a class of Keras layers, or a function that makes one for each site, "
            f"got dropout_layer={dropout_layer!r}."
        )
    if kind is not None:
        raise InputError(f"`dropout_layer` takes the place of `kind`; give one of them, got kind={kind!r}.")
    for name, value, reason in (
        ("block_size", block_size, "it belongs to kind='block'"),
        ("shared_across_batch", shared_across_batch, "what it drops together is its own affair"),
        ("adjustable", adjustable, "its rate is a plain number, which a step that is traced does not read again"),
    ):
        if value:
            raise InputError(f"`{name}` is not for a `dropout_layer`: {reason}.")
    return None


def make_layer(dropout_layer: Maker, rate: float, name: str, **options) -> keras.layers.Layer:
    """A layer of the user's own for a site.

    Args:
        options: seed and dtype, which are handed on where they are taken.

    Raises:
        InputError: it cannot be made like that, or is not what dropout must be.
    """
    given = {"name": name, **{key: value for key, value in options.items() if key in _taken(dropout_layer)}}
    told = "".join(f", {key}={value!r}" for key, value in given.items())
    call = f"{getattr(dropout_layer, '__name__', repr(dropout_layer))}({rate:g}{told})"
    try:
        layer = dropout_layer(rate, **given)
    except (TypeError, ValueError) as error:
        raise InputError(f"`dropout_layer` must take a rate and `name`: {call} says {first_line(error)}") from error
    if not isinstance(layer, keras.layers.Layer):
        raise InputError(f"`dropout_layer` must give a Keras layer, {call} gives {layer!r}.")
    if layer.name != name or getattr(layer, "rate", None) != rate:
        raise InputError(
            "`dropout_layer` must give layers with the name and the `rate` that it is given, by which they are known "
            f"as dropout; {call} gives name={layer.name!r}, rate={getattr(layer, 'rate', None)!r}."
        )
    if "training" not in _parameters(type(layer).call):
        raise InputError(f"`dropout_layer` must give layers whose `call` takes `training`; that of {call} does not.")
    if copy_layer(layer).rate != rate or layer.get_config().get("rate") != rate:
        raise InputError(f"`dropout_layer` must give layers whose get_config has their `rate`; that of {call} has not.")
    return layer


def check_rests(layer: keras.layers.Layer, shape: tuple) -> None:
    """Raise InputError unless a layer that is built has no weights and returns its input at inference.

    Args:
        shape: of a tensor that it is called on; None for what is open.
    """
    if layer.weights:
        raise InputError(
            f"`dropout_layer` must give layers without weights, so that weight files load both ways; {layer.name!r} "
            f"has {layer.weights[0].path!r}: put it in with segdrop.insert_layers."
        )
    sides = [1, *(8 if side is None else side for side in shape[1:])]
    values = (np.arange(np.prod(sides)) % 7 - 3).reshape(sides).astype("float32")  # exact in every precision
    output = keras.ops.cast(layer(values, training=False), "float32")
    if not np.array_equal(np.asarray(keras.ops.convert_to_numpy(output)), values):
        raise InputError(f"`dropout_layer` must return its input where `training` is false; {layer.name!r} does not.")


def _taken(dropout_layer: Maker) -> set[str]:
    """What a class or function takes of seed and dtype; `**kwargs` of a class goes to Keras, which takes a dtype."""
    parameters = _parameters(dropout_layer.__init__ if isinstance(dropout_layer, type) else dropout_layer)
    more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return set(parameters) | ({"dtype"} if more else set())


def _parameters(function) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of some that are written in C
        return {}
