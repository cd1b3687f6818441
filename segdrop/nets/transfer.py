"""The weights of an earlier network for another one of the same layers."""

from dataclasses import dataclass

import keras
import numpy as np

from ..anatomy import HEAD
from ..errors import InputError
from .channels import BGR, fit_channels
from .sites import encoder_end, encoder_layers


@dataclass(frozen=True)
class Transferred:
    """What a network has from an earlier one.

    Attributes:
        file: path of the earlier one.
        sha256: of the file's content.
        parts: "both", "encoder" or "decoder".
        layers: how many layers of these parts have its weights.
        new: the names of those that have not.
    """

    file: str
    sha256: str
    parts: str
    layers: int
    new: tuple[str, ...]

    def __str__(self) -> str:
        part = "" if self.parts == "both" else f"{self.parts} "
        rest = f"; new: {', '.join(self.new)}" if self.new else ""
        return f"{self.layers} of {self.layers + len(self.new)} {part}layers from {self.file}{rest}"


def transfer(source: keras.Model, target: keras.Model, parts: str = "both") -> tuple[list[str], list[str]]:
    """Give a U-Net the weights of another one, layer by layer, or raise and leave it as it is.

    Layers are matched by name, those with weights and the one that brings images to mean 0; dropout is neither, so that
    the two may differ in it. Where the numbers of input channels differ, the weights are fitted as pretrained ones are.

    Args:
        parts: "both", "encoder", or "decoder", the last convolution included.

    Returns:
        The layers that now are those of `source`, and the one that keeps its own weights where the numbers of classes
        differ, the last convolution.

    Raises:
        InputError: the layers of these parts are not the same; it names the first that differs.
    """
    theirs, ours = _layers(source, parts), _layers(target, parts)
    values = {name: _fitted(theirs[name], layer, source, target) for name, layer in ours.items() if name in theirs}
    new = []
    for name in {**ours, **theirs}:
        if name not in theirs:
            raise InputError(f"it has no layer {name!r}")
        if name not in ours:
            raise InputError(f"it has a layer {name!r}, which this network has not")
        given, needed = [value.shape for value in values[name]], [tuple(weight.shape) for weight in ours[name].weights]
        if name == HEAD and given != needed and [shape[:-1] for shape in given] == [shape[:-1] for shape in needed]:
            new.append(name)
        elif given != needed:
            raise InputError(f"its layer {name!r} has weights of shape {given}, this network's {needed}")
    loaded = [name for name in ours if name not in new]
    for name in loaded:
        if isinstance(ours[name], keras.layers.Rescaling):
            _take_scale(theirs[name], ours[name])
        else:
            ours[name].set_weights(values[name])
    return loaded, new


def _fitted(theirs, ours, source: keras.Model, target: keras.Model) -> list[np.ndarray]:
    """The weights of a layer, those that see the images fitted to the channels there are."""
    given, channels = source.input_shape[-1], target.input_shape[-1]
    needed = [tuple(weight.shape) for weight in ours.weights]
    values = theirs.get_weights()
    if len(values) != len(needed):
        return values
    bgr = any(layer.name == BGR for layer in source.operations)
    fit = zip(values, needed, strict=True)
    return [value if value.shape == shape else fit_channels(value, channels, given, bgr) for value, shape in fit]


def _layers(model: keras.Model, parts: str) -> dict[str, keras.layers.Layer]:
    """The layers of these parts of a U-Net that a training, or a file of weights, has made what they are, by name."""
    if encoder_end(model) is None:
        raise InputError("it is no U-Net of segdrop")
    encoder = {layer.name for layer in encoder_layers(model)}
    return {
        layer.name: layer
        for layer in model.layers
        if (layer.weights or isinstance(layer, keras.layers.Rescaling))
        and (parts == "both" or (layer.name in encoder) == (parts == "encoder"))
    }


def _take_scale(source: keras.layers.Rescaling, target: keras.layers.Rescaling) -> None:
    """Bring images to the mean and deviation that the encoder of `source` was trained with."""
    scale, offset, channels = source.scale, source.offset, target.input.shape[-1]
    if np.size(scale) not in (1, channels):
        mean, deviation = -np.divide(offset, scale), np.divide(1, scale)
        if channels == 1:
            mean, deviation = mean.mean(), deviation.mean()
        mean, deviation = np.resize(mean, channels), np.resize(deviation, channels)
        scale, offset = (1 / deviation).tolist(), (-mean / deviation).tolist()
    target.scale, target.offset = scale, offset
