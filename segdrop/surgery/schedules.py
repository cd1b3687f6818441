"""Dropout rates that change during training."""

from collections.abc import Callable

import keras

from ..config.checks import check_rate, check_whole
from ..errors import InputError
from ..layers import AdjustableDropout, DropBlock2D
from .graph import trace

SHAPES = {
    "ramp": lambda epoch, epochs: min(1.0, epoch / epochs),
    "anneal": lambda epoch, epochs: max(0.0, 1 - epoch / epochs),
    "warmup": lambda epoch, epochs: float(epoch >= epochs),
}


class DropoutSchedule(keras.callbacks.Callback):
    """Multiply the rates of a model's dropout layers by a factor that depends on the epoch.

    Put it before the callbacks that log: it adds `dropout_rate`, the mean over the layers, to each epoch's logs.

    Args:
        shape: `"ramp"`: from 0 in the first epoch to the full rate after `epochs` (curriculum). `"anneal"`: from the
            full rate in the first epoch to 0 after `epochs`. `"warmup"`: 0 for `epochs`, then the full rate. Or a
            function of the epoch (from 0) that gives the factor, which must leave all rates in [0, 1).
        epochs: length of a named shape, at least 1.

    Raises:
        InputError: an unknown shape, wrong `epochs`; when training begins: the model has no adjustable layer.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(1)])
        >>> model = segdrop.insert_dropout(model, "hidden", 0.4, adjustable=True)
        >>> model.compile("adam", "mse")
        >>> schedule = segdrop.DropoutSchedule("ramp", epochs=2)
        >>> model.fit(np.ones((8, 4)), np.ones(8), epochs=4, verbose=0, callbacks=[schedule]).history["dropout_rate"]
        [0.0, 0.2, 0.4, 0.4]

    References:
        Morerio et al. 2017, Curriculum dropout (ramp); Ghiasi et al. 2018, DropBlock (its linear ramp).
    """

    def __init__(self, shape: str | Callable[[int], float], epochs: int | None = None):
        super().__init__()
        if callable(shape):
            if epochs is not None:
                raise InputError("`epochs` belongs to a named shape; leave it out when `shape` is a function.")
            self.factor = shape
        elif not isinstance(shape, str) or shape not in SHAPES:
            raise InputError(f"`shape` must be one of {', '.join(SHAPES)} or a function, got shape={shape!r}.")
        else:
            length = check_whole(epochs, "epochs")
            self.factor = lambda epoch: SHAPES[shape](epoch, length)

    def on_train_begin(self, logs=None):
        self._layers = adjustable_layers(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        factor = self.factor(epoch)
        _assign(self.model, {layer: factor * layer.target for layer in self._layers})

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["dropout_rate"] = mean_rate(self._layers)


def set_dropout_rate(model: keras.Model, rate: float) -> None:
    """Give all adjustable dropout layers of `model` a rate in [0, 1), which acts on the next step.

    It may be called while the model is being fitted, from a callback for instance, and needs no compilation.

    Raises:
        InputError: the rate is outside its range, or the model has no adjustable layer.

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, adjustable=True)
        >>> segdrop.set_dropout_rate(model, 0.1)
        >>> [row["rate"] for row in segdrop.dropout_table(model)]
        [0.1, 0.1, 0.1]
    """
    _assign(model, dict.fromkeys(adjustable_layers(model), check_rate(rate)))


def adjustable_layers(model: keras.Model) -> list[AdjustableDropout | DropBlock2D]:
    """The dropout layers of `model` whose rates can change, in its order, those within nested models too."""
    layers = {call.layer: None for call in trace(model) if isinstance(call.layer, (AdjustableDropout, DropBlock2D))}
    if not layers:
        raise InputError(
            "`model` has no dropout layer whose rate can change; build it with adjustable=True (build_unet, "
            "insert_dropout)."
        )
    return list(layers)


def mean_rate(layers) -> float:
    return float(f"{sum(layer.rate for layer in layers) / len(layers):.4g}")


def _assign(model, rates: dict) -> None:
    if hasattr(model, "jax_state_sync"):  # under JAX, fit keeps the variables' values to itself
        model.jax_state_sync()
    for layer, rate in rates.items():
        layer.rate = rate
