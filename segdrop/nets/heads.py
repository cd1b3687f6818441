"""An image-level output on a pretrained network: a classifier, or a second output beside a mask."""

import numbers
from collections.abc import Sequence

import keras

from ..config.checks import check_rate, check_whole
from ..errors import InputError
from ..surgery.graph import functional_view, layers_by_path
from ..surgery.rebuild import rebuild
from ..surgery.selection import nearest_names
from .sites import encoder_end

POOLINGS = {
    "avg": (keras.layers.GlobalAveragePooling2D,),
    "max": (keras.layers.GlobalMaxPooling2D,),
    "avgmax": (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D),
    "flatten": (keras.layers.Flatten,),
}


def add_head(
    model: keras.Model,
    classes: int,
    *,
    at: str | None = None,
    beside: bool = False,
    projection: int | None = None,
    pooling: str = "avg",
    units: Sequence[int] = (),
    dropout: float | Sequence[float] = 0.5,
    activation: str | None = None,
    freeze_base: bool = False,
    name: str = "label",
    seed: int | None = None,
) -> keras.Model:
    """Return a copy of `model` with an image-level output: pooling, dense layers with dropout, and a last dense layer.

    `model` is left as it is; its weights, layer names and `trainable` flags are in the copy, which is not compiled.
    The last layer computes in float32 under every precision policy.

    Args:
        model: a functional or Sequential Keras 3 model: a classifier's base (`include_top=False`), or a U-Net.
        classes: number of classes; 1 is a yes-no label or a number.
        at: layer whose output is the head's input, (N, H, W, C) or (N, C). By default the model's output, and with
            `beside=True`, for a U-Net of segdrop, the end of its encoder.
        beside: keep the model's outputs. The copy then returns a dict of its outputs and of the head's under `name`:
            `{"sigmoid": mask, "label": label}` for a binary U-Net; loss and metrics are dicts with these keys.
        projection: filters of a 1x1 convolution with ReLU before the pooling: fewer numbers for what comes after it.
        pooling: `"avg"`, `"max"`, `"avgmax"`, both beside each other, or `"flatten"`, every value of the maps, whose
            size must be known; unused for (N, C).
        units: widths of hidden dense layers with ReLU.
        dropout: probability of dropping before each dense layer, in [0, 1); or one for each, the last layer's at the
            end: as many as `units` and one more.
        activation: of the last layer; by default sigmoid for one class and softmax for more; `"linear"` for logits.
        freeze_base: freeze all layers of `model`, BatchNorm included.
        name: of the last layer; the others begin with it.
        seed: seed of the dropout masks.

    Raises:
        InputError: an argument outside its range, no layer called `at`, an input that is neither 4-D nor 2-D, or that
            is probabilities already, or maps of no known size to flatten.

    Example:
        >>> unet = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> model = segdrop.add_head(unet, classes=3, beside=True)
        >>> outputs = model(np.zeros((1, 64, 64, 3), "float32"))
        >>> {name: tuple(output.shape) for name, output in outputs.items()}
        {'sigmoid': (1, 64, 64, 1), 'label': (1, 3)}
    """
    rates = _check_layers(classes, projection, pooling, units, dropout)
    if not isinstance(name, str) or not name:
        raise InputError(f"`name` must be a text, got name={name!r}.")
    view = functional_view(model)
    layers = layers_by_path(view)
    taken = [layer for layer in layers if layer == name or layer.startswith(f"{name}_")]
    if taken:
        raise InputError(f"`name` must be new to the model, which has {taken[0]!r}, got name={name!r}.")
    if at is None and beside:
        end = encoder_end(view)
        if end is None:
            raise InputError("`at` must name the layer to put the head on: this model is not a U-Net of segdrop.")
        at = end.name
    if at is not None and at not in layers:
        raise InputError(f"`at` names no layer of this model: {at!r}. Nearest: {nearest_names(at, layers)}.")
    base = rebuild(view)
    if freeze_base:
        base.trainable = False  # the flags of its layers, which the returned model is made of
    features = layers_by_path(base)[at].outputs[0][0] if at else base.output
    _check_features(features, at, projection, pooling)

    x = _pooled(features, projection, pooling, name)
    for i, (width, rate) in enumerate(zip([*units, classes], rates, strict=True)):
        if rate > 0:
            x = keras.layers.Dropout(rate, seed=None if seed is None else seed + i, name=f"{name}_dropout{i}")(x)
        if i < len(units):
            x = keras.layers.Dense(width, activation="relu", name=f"{name}_dense{i}")(x)
    last_activation = activation or ("sigmoid" if classes == 1 else "softmax")
    output = keras.layers.Dense(classes, activation=last_activation, dtype="float32", name=name)(x)
    if not beside:
        return keras.Model(base.input, output, name=model.name)
    outputs = base.output
    if not isinstance(outputs, dict):
        outputs = dict(zip(base.output_names, keras.tree.flatten(outputs), strict=True))
    return keras.Model(base.input, {**outputs, name: output}, name=model.name)


def _check_layers(classes, projection, pooling, units, dropout) -> list[float]:
    """Check what says which layers the head has; the rate before each of its dense layers."""
    check_whole(classes, "classes")
    if projection is not None:
        check_whole(projection, "projection")
    if pooling not in POOLINGS:
        raise InputError(f"`pooling` must be one of {', '.join(POOLINGS)}, got pooling={pooling!r}.")
    if isinstance(units, numbers.Number) or any(
        isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1 for n in units
    ):
        raise InputError(f"`units` must be whole numbers of at least 1, got units={units!r}.")
    count = len(units) + 1
    if not isinstance(dropout, (tuple, list)):
        return [check_rate(dropout, "dropout")] * count
    if len(dropout) != count:
        raise InputError(
            f"`dropout` must be one rate or {count}, one for each dense layer and the last one's at the end, "
            f"got dropout={dropout!r}."
        )
    return [check_rate(rate, "dropout") for rate in dropout]


def _check_features(features, at: str | None, projection: int | None, pooling: str) -> None:
    """Raise InputError unless the head can be put on these."""
    if not hasattr(features, "shape") or len(features.shape) not in (2, 4):
        raise InputError(f"The head needs one tensor (N, H, W, C) or (N, C); {at or 'the output'} gives another.")
    last = features._keras_history.operation
    activation = getattr(getattr(last, "activation", None), "__name__", type(last).__name__.lower())
    if activation in ("softmax", "sigmoid"):
        raise InputError(f"The output of {last.name!r} is probabilities; name the layer with the features by `at`.")
    shape = tuple(features.shape)
    if projection is not None and len(shape) == 2:
        raise InputError(f"`projection` needs features (N, H, W, C); {last.name!r} gives {shape}: use `units`.")
    if pooling == "flatten" and None in shape[1:]:
        raise InputError(
            f"pooling='flatten' needs maps of a known size; {last.name!r} gives {shape}: build the model with the "
            "images' height and width, or choose another pooling."
        )


def _pooled(features, projection: int | None, pooling: str, name: str):
    """The features as (N, C)."""
    if len(features.shape) == 2:
        return features
    if projection is not None:
        features = keras.layers.Conv2D(projection, 1, activation="relu", name=f"{name}_projection")(features)
    pooled = [pool(name=f"{name}_{pool.__name__}")(features) for pool in POOLINGS[pooling]]
    return pooled[0] if len(pooled) == 1 else keras.layers.Concatenate(name=f"{name}_pooled")(pooled)
