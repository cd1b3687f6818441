"""Networks of segmentation_models with Keras's own layers in the place of its Lambda layers.

A saved model with Lambda layers does not load in safe mode, and 32 convolutions beside each other are not fast.
"""

import re
from collections import Counter

import keras
import numpy as np
from keras import layers

from ..layers import is_dropout
from ..surgery.graph import functional_view
from ..surgery.rebuild import rebuild


def with_plain_layers(model: keras.Model) -> keras.Model:
    """Return a copy of a pretrained network that computes the same and can be saved: without Lambda layers, with the
    same names in every process, and without dropout of its own.

    What is replaced: `x[:, None, None]` by Reshape; the scaled sums of InceptionResNetV2 by Rescaling and Add; slices,
    convolutions of each and Concatenate by one convolution in groups; Normalization, of which tf2onnx takes the
    statistics for inputs of the network, by Rescaling. Dropout goes because what is asked for in the
    encoder is to be what there is.

    Example:
        >>> from segdrop.nets.plain import with_plain_layers
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
        >>> [type(layer).__name__ for layer in with_plain_layers(model).layers]
        ['InputLayer', 'Dense']
    """
    model = functional_view(model)
    _number_names(model)
    grouped: list[tuple[layers.Conv2D, list[layers.Conv2D]]] = []

    def call(path, layer, args, kwargs):
        if is_dropout(layer):
            return args[0]
        if isinstance(layer, layers.Normalization):
            layer(*args)  # `rebuild` gives weights to all copies, and one that was never called has none
            return _as_rescaling(model.get_layer(layer.name))(args[0])
        if isinstance(layer, layers.Lambda) and "scale" in layer.arguments:
            stream, branch = args[0]
            scaled = layers.Rescaling(layer.arguments["scale"], name=f"{layer.name}_scale")(branch)
            return layers.Add(name=f"{layer.name}_add")([stream, scaled])
        if isinstance(layer, layers.Lambda) and layer.function.__name__ == "expand_dims":
            return layers.Reshape((1, 1, args[0].shape[-1]), name=f"{layer.name}_expand")(args[0])
        parts = _convolutions_of_slices(layer, args)
        if not parts:
            return layer(*args, **kwargs)
        whole = _in_groups(parts, f"{layer.name}_groups")
        grouped.append((whole, parts))
        return whole(parts[0].input._keras_history.operation.input)

    copy = rebuild(model, call)
    for whole, parts in grouped:  # the parts have their weights now
        values = zip(*(part.get_weights() for part in parts), strict=True)
        whole.set_weights([np.concatenate(value, axis=-1) for value in values])
    return copy


def _as_rescaling(layer: layers.Normalization) -> layers.Rescaling:
    """What brings images to mean 0 and deviation 1 as `layer` does."""
    if layer.weights:  # else its statistics are those that it was made with
        layer.finalize_state()
    mean, variance = (np.asarray(value, "float64").reshape(-1) for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    return layers.Rescaling((1 / deviation).tolist(), (-mean / deviation).tolist(), name=layer.name)


def _convolutions_of_slices(layer, args) -> list[layers.Conv2D]:
    """The convolutions that a Concatenate joins, if each is of a slice of the same maps."""
    if not isinstance(layer, layers.Concatenate):
        return []
    parts = [tensor._keras_history.operation for tensor in args[0]]
    if not all(isinstance(part, layers.Conv2D) for part in parts):
        return []
    slices = [part.input._keras_history.operation for part in parts]
    return parts if all(isinstance(s, layers.Lambda) and "stop" in s.arguments for s in slices) else []


def _in_groups(parts: list[layers.Conv2D], name: str) -> layers.Conv2D:
    first = parts[0]
    config = {**first.get_config(), "filters": len(parts) * first.filters, "groups": len(parts), "name": name}
    return layers.Conv2D.from_config(config)


def _number_names(model: keras.Model) -> None:
    """Number the layers that Keras has named from 0, as its own count goes on through a whole process."""
    seen: Counter[str] = Counter()
    for layer in model.operations:
        base = re.sub(r"_\d+$", "", layer.name)
        if base.replace("_", "") == type(layer).__name__.lower():
            layer.name = f"{base}_{seen[base]}" if seen[base] else base
            seen[base] += 1
