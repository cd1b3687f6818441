"""The layers of dropout, by kind: Keras's own, and those that Keras does not have.

Importing this module registers the latter for `keras.saving.load_model`. They use `keras.ops` and `keras.random` only,
so they run on every backend of Keras.
"""

import inspect
import math

import keras
from keras import ops

from .config.checks import check_rate, check_whole, is_finite
from .config.fields import DROPOUT_KINDS
from .errors import InputError


class _Rate(keras.random.SeedGenerator):
    """A rate that can change between the steps of a model that is already traced.

    Keras keeps the state of a `SeedGenerator` in `layer.variables` and out of `layer.weights`: a compiled step reads it
    anew each time, and weight files do not know of it. A plain number would be baked into the step; a weight would
    keep the files of the plain and the dropped-out network from loading into each other.
    """

    def __init__(self, rate: float, owner: str):
        super().__init__(seed=0)
        with keras.name_scope(owner):
            self.state = keras.Variable(
                rate,
                shape=(),
                dtype="float32",
                trainable=False,
                autocast=False,  # mixed precision would round it
                aggregation="none",
                name="rate",
            )


class _AdjustableLayer(keras.layers.Layer):
    """A dropout layer whose `rate` can be assigned at any time and acts on the next step."""

    def __init__(self, rate, target=None, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.target = check_rate(rate if target is None else target, "target")
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._rate = _Rate(check_rate(rate), self.name)
        self.supports_masking = True

    @property
    def rate(self) -> float:
        """The rate that acts now; `target` is the one that a schedule takes parts of."""
        return float(f"{float(ops.convert_to_numpy(self._rate.state)):.6g}")

    @rate.setter
    def rate(self, value: float):
        self._rate.state.assign(check_rate(value))

    def call(self, inputs, training=False):
        if not training:
            return inputs
        rate = ops.convert_to_tensor(self._rate.state)
        scale = ops.cast(1 / (1 - rate), inputs.dtype)
        return ops.where(self._kept(inputs, rate), inputs * scale, ops.zeros((), inputs.dtype))

    def _kept(self, inputs, rate):
        """Booleans that broadcast to `inputs`: what is kept."""
        raise NotImplementedError

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        # `rate` is the current one, so that a saved model says with which rate it was saved.
        return {**super().get_config(), "rate": self.rate, "target": self.target, "seed": self.seed}


@keras.saving.register_keras_serializable("segdrop")
class AdjustableDropout(_AdjustableLayer):
    """`keras.layers.Dropout` with a rate that can change during training: `layer.rate = 0.1`.

    At inference it returns its input. In training each value, or each group of values that share an entry of the
    mask, is zero with probability `rate` and multiplied by 1 / (1 - rate) otherwise.

    Args:
        rate: probability of dropping, in [0, 1).
        noise_shape: shape of the mask, 1 where it is shared along an axis and None where it is as long as the
            input's; None for no sharing. (None, 1, 1, None) drops whole feature maps.
        target: the rate that schedules take parts of; by default `rate`.
        seed: seed of the masks.

    Example:
        >>> dropout, ones = AdjustableDropout(0.5), np.ones((100, 100), "float32")
        >>> np.unique(dropout(ones, training=True)).tolist()
        [0.0, 2.0]
        >>> dropout.rate = 0.2
        >>> np.unique(dropout(ones, training=True)).tolist()
        [0.0, 1.25]
    """

    def __init__(self, rate, noise_shape=None, target=None, seed=None, **kwargs):
        super().__init__(rate, target, seed, **kwargs)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)

    def _kept(self, inputs, rate):
        shape = ops.shape(inputs)
        if self.noise_shape is not None:
            shape = tuple(
                actual if wanted is None else wanted for actual, wanted in zip(shape, self.noise_shape, strict=True)
            )
        return keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= rate

    def get_config(self):
        return {**super().get_config(), "noise_shape": self.noise_shape}


@keras.saving.register_keras_serializable("segdrop")
class DropBlock2D(_AdjustableLayer):
    """Drop contiguous squares of each feature map; every value is kept with probability exactly 1 - rate.

    Neighbouring values of a feature map carry the same information, so dropping single ones takes little away.
    At inference it returns its input.

    The published rate of block seeds is an approximation, off near the borders and at high rates. Here seeds are
    drawn on the map enlarged by block_size - 1 per axis, each with probability 1 - (1 - rate)^(1 / block_size^2): a
    value is kept when none of the block_size^2 seeds that reach it is drawn. Kept values are multiplied by
    1 / (1 - rate), not by the batch's actual share. Masks are independent for samples and channels.

    Args:
        rate: probability of dropping a value, in [0, 1).
        block_size: side of the squares in pixels of the feature map. On a map of dynamic size it is clipped to the
            map's shorter side.
        shared_across_batch: one mask for all samples of a batch.
        data_format: "channels_last" or "channels_first"; by default Keras's setting.
        target: the rate that schedules take parts of; by default `rate`.
        seed: seed of the masks.

    Input: float (N, H, W, C), or (N, C, H, W) for channels_first.

    Raises:
        InputError: `block_size` is no whole number of at least 1, or larger than a map whose size is known.

    Example:
        >>> dropout, ones = DropBlock2D(0.1, block_size=3), np.ones((100, 32, 32, 8), "float32")
        >>> kept = np.asarray(dropout(ones, training=True)) > 0
        >>> round(float(kept.mean()), 1)
        0.9

    References:
        Ghiasi, Lin and Le 2018, DropBlock, https://arxiv.org/abs/1810.12890.
    """

    def __init__(self, rate, block_size, shared_across_batch=False, data_format=None, target=None, seed=None, **kwargs):
        super().__init__(rate, target, seed, **kwargs)
        self.block_size = check_whole(block_size, "block_size")
        self.shared_across_batch = bool(shared_across_batch)
        self.data_format = data_format or keras.config.image_data_format()
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        known = [side for side in (input_shape[axis] for axis in self._map_axes) if side is not None]
        if known and self.block_size > min(known):
            raise InputError(
                f"`block_size` must be at most the side of the feature map, got block_size={self.block_size} "
                f"for {self.name!r} on a map of {' x '.join(str(input_shape[axis]) for axis in self._map_axes)}."
            )
        self.built = True

    @property
    def _map_axes(self):
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    def _kept(self, inputs, rate):
        sides = list(ops.shape(inputs))
        if self.shared_across_batch:
            sides[0] = 1
        size = self._clipped_size(sides)
        area = ops.cast(size, "float32") ** 2
        for axis in self._map_axes:
            sides[axis] = sides[axis] + size - 1
        seed_rate = 1 - (1 - rate) ** (1 / area)
        seeds = keras.random.uniform(sides, dtype="float32", seed=self.seed_generator) < seed_rate
        # How many seeds lie in each window, by differences of running sums: the window's size may be dynamic.
        counts = ops.cast(seeds, "float32")
        for axis in self._map_axes:
            total = ops.cumsum(counts, axis=axis)
            padding = [(int(axis == other), 0) for other in range(4)]
            total = ops.pad(total, padding)
            head = [slice(None)] * 4
            tail = [slice(None)] * 4
            head[axis], tail[axis] = slice(size, None), slice(None, -size)
            counts = total[tuple(head)] - total[tuple(tail)]
        return counts < 0.5

    def _clipped_size(self, sides):
        map_sides = [sides[axis] for axis in self._map_axes]
        if all(isinstance(side, int) for side in map_sides):
            return min(self.block_size, *map_sides)
        return ops.minimum(self.block_size, ops.minimum(*map_sides))

    def get_config(self):
        return {
            **super().get_config(),
            "block_size": self.block_size,
            "shared_across_batch": self.shared_across_batch,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable("segdrop")
class FixedMode(keras.layers.Layer):
    """Call `layer` in training mode (`training=True`) or in inference mode, whatever the mode of the model.

    It has the wrapped layer's name and weights.

    Example:
        >>> always = FixedMode(keras.layers.Dropout(0.5), mode=True)
        >>> np.unique(always(np.ones((100, 100), "float32"), training=False)).tolist()
        [0.0, 2.0]
    """

    def __init__(self, layer, mode: bool, **kwargs):
        super().__init__(**{"name": layer.name, "dtype": layer.dtype_policy, **kwargs})
        self.layer, self.mode = layer, bool(mode)
        self.supports_masking = True
        self._takes_mask = "mask" in inspect.signature(layer.call).parameters  # BatchNorm does

    def build(self, input_shape):
        if not self.layer.built:  # or Keras would try to trace it, which JAX cannot with a map of any size
            self.layer.build(input_shape)
        self.built = True

    def call(self, inputs, training=None, mask=None):
        if mask is not None and self._takes_mask:
            return self.layer(inputs, training=self.mode, mask=mask)
        return self.layer(inputs, training=self.mode)

    def compute_output_spec(self, inputs, training=None, mask=None):
        # Not by the shape alone, which layers of the user's own need not tell.
        return self.layer.compute_output_spec(inputs, training=self.mode)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "mode": self.mode,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


SUFFIX = "_dropout"  # of the name of a layer that is inserted after one
_SPATIAL = {3: keras.layers.SpatialDropout1D, 4: keras.layers.SpatialDropout2D, 5: keras.layers.SpatialDropout3D}
_RANKS = {
    "block": ((4,), "4-D outputs (N, H, W, C)"),
    "spatial": ((3, 4, 5), "4-D outputs (N, H, W, C), or 3-D or 5-D"),
}


def check_rank(kind: str, shape: tuple, site: str) -> None:
    """Raise InputError unless tensors of this shape can be dropped by `kind`; `site` is named."""
    ranks, words = _RANKS.get(kind, ((len(shape),), ""))
    if len(shape) not in ranks:
        raise InputError(f"kind={kind!r} needs {words}; site {site!r} gives {shape}.")


def count_units(layer, shape: tuple) -> int | None:
    """How many units a dropout layer drops or keeps as one in a sample of `shape`; None where that is not known."""
    kind, _ = kind_of(layer)
    if kind == "spatial":
        return shape[channel_axis(layer)]
    if kind == "path":
        return 1
    return None if kind not in (*DROPOUT_KINDS, "alpha", "other") or None in shape[1:] else math.prod(shape[1:])


def unwrapped(layer):
    return layer.layer if isinstance(layer, FixedMode) else layer


def is_dropout(layer) -> bool:
    """Whether a layer is a dropout layer: Keras's, segdrop's, the user's own, or one that is always on.

    The user's own are layers without weights that have a `rate`, a number in [0, 1), and a name that ends in
    `_dropout`, as what is inserted is called.
    """
    layer = unwrapped(layer)
    if not is_custom(layer):
        return True
    rate = getattr(layer, "rate", None)
    return (
        is_finite(rate)
        and 0 <= rate < 1
        and isinstance(layer, keras.layers.Layer)
        and layer.name.endswith(SUFFIX)
        and not layer.weights
    )


def is_custom(layer) -> bool:
    """Whether a dropout layer is none of the known classes, nor made of one."""
    layer = unwrapped(layer)
    return not isinstance(layer, _CLASSES) and not _is_stochastic_depth(layer)


def _is_stochastic_depth(layer) -> bool:
    return type(layer).__name__ == "StochasticDepth"  # keras.applications has one of its own (ConvNeXt)


_CLASSES = (
    keras.layers.Dropout,
    *_SPATIAL.values(),
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
    AdjustableDropout,
    DropBlock2D,
)


def rate_of(layer) -> float:
    """The rate of a dropout layer at this moment."""
    layer = unwrapped(layer)
    return float(layer.drop_path_rate if _is_stochastic_depth(layer) else layer.rate)


def kind_of(layer) -> tuple[str, bool]:
    """Kind of a dropout layer, and whether the batch shares its mask; "other" for a mask of no named kind; of the
    user's own layers the name of their class."""
    layer = unwrapped(layer)
    if is_custom(layer):
        return type(layer).__name__, False
    if isinstance(layer, DropBlock2D):
        return "block", layer.shared_across_batch
    if isinstance(layer, tuple(_SPATIAL.values())):
        return "spatial", False
    if isinstance(layer, (keras.layers.GaussianDropout, keras.layers.AlphaDropout)):
        return type(layer).__name__.removesuffix("Dropout").lower(), False
    if not isinstance(layer, (keras.layers.Dropout, AdjustableDropout)):
        return "path", False
    noise_shape = layer.noise_shape
    if noise_shape is None:
        return "element", False
    shared, kind = noise_shape[0] == 1, tuple(noise_shape[1:])
    for name in ("element", "path", "spatial"):
        for data_format in ("channels_last", "channels_first"):
            if kind == _noise_shape(name, len(noise_shape), False, data_format)[1:]:
                return name, shared
    return "other", shared


def channel_axis(layer) -> int:
    """The axis of the channels for a spatial or block dropout layer."""
    layer = unwrapped(layer)
    noise_shape = getattr(layer, "noise_shape", None)
    if noise_shape is not None:
        return next(axis for axis in range(len(noise_shape) - 1, 0, -1) if noise_shape[axis] is None)
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else -1


def check_kind(kind: str, block_size: int | None = None) -> None:
    """Raise InputError unless `kind` is known and goes with `block_size`."""
    if kind not in DROPOUT_KINDS:
        raise InputError(f"`kind` must be one of {', '.join(DROPOUT_KINDS)}, got kind={kind!r}.")
    if block_size is not None and kind != "block":
        raise InputError(f"`block_size` belongs to kind='block', got kind={kind!r}.")


def _noise_shape(kind: str, rank: int, shared: bool, data_format: str) -> tuple:
    batch = 1 if shared else None
    if kind == "element":
        return (batch, *[None] * (rank - 1))
    if kind == "path":
        return (batch, *[1] * (rank - 1))
    if data_format == "channels_first":
        return (batch, None, *[1] * (rank - 2))
    return (batch, *[1] * (rank - 2), None)


def layer_of_kind(kind, rate, rank, *, data_format, block_size, shared, adjustable, **options) -> keras.layers.Layer:
    """Keras's own layer where it has one for this kind."""
    if kind == "block":
        return DropBlock2D(rate, 3 if block_size is None else block_size, shared, data_format, **options)
    noise_shape = None if kind == "element" and not shared else _noise_shape(kind, rank, shared, data_format)
    if adjustable:
        return AdjustableDropout(rate, noise_shape, **options)
    # SpatialDropout does not store its data format.
    if kind == "spatial" and not shared and data_format == keras.config.image_data_format():
        return _SPATIAL[rank](rate, **options)
    return keras.layers.Dropout(rate, noise_shape, **options)
