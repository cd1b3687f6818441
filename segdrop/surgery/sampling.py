"""Monte Carlo dropout: the part of a network below its first dropout runs once, the rest once per sample."""

from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from ..config.checks import check_rate, check_seed, check_whole
from ..errors import InputError
from ..layers import FixedMode, is_custom, is_dropout, kind_of, rate_of, unwrapped
from ..scoring.uncertainty import SMALLEST
from .dropout import stream_name
from .graph import call_nodes, functional_view, is_model, trace
from .rebuild import copy_layer, rebuild


def monte_carlo(model: keras.Model, *, rate: float | None = None, seed: int | None = None) -> keras.Model:
    """Return a twin of `model` whose dropout is always on: repeated calls sample its predictions.

    The twin shares the layers and weights of `model`, so it follows its training. Only dropout is random, in
    `predict`, `__call__` and `evaluate` alike, and BatchNorm always uses its moving statistics, which are not
    moved, even under `training=True`. The dropout layers are fresh ones with the rates of now.

    Args:
        model: a functional or Sequential Keras 3 model with dropout layers, freshly built or loaded from disk;
            nested models are entered. Dropout within other layers (attention, recurrent ones) is not seen.
        rate: a rate for all sites instead of their own, in [0, 1): after a schedule that ends at 0, for instance.
        seed: makes the sequence of samples reproducible.

    Raises:
        InputError: the model has no dropout layer, or every rate is 0.

    Example:
        >>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        >>> sampled = segdrop.monte_carlo(model)
        >>> values = np.ones((1, 100), "float32")
        >>> np.array_equal(model(values), model(values)), np.array_equal(sampled(values), sampled(values))
        (True, False)

    References:
        Gal and Ghahramani 2016, Dropout as a Bayesian approximation, https://arxiv.org/abs/1506.02142.
    """
    check_seed(seed)
    dropouts = [call.layer for call in trace(model) if is_dropout(call.layer)]
    if not dropouts:
        raise InputError("`model` has no dropout layer, so that its samples would all be equal; insert one first.")
    if rate is not None:
        rate = check_rate(rate)
    elif not any(rate_of(layer) for layer in dropouts):
        raise InputError("Every dropout layer of `model` has rate 0 now, as a schedule leaves it; give `rate`.")
    order = {id(unwrapped(layer)): index for index, layer in enumerate(dropouts)}

    def convert(path, layer):
        layer = unwrapped(layer)
        if isinstance(layer, keras.layers.BatchNormalization):
            return FixedMode(layer, False)
        if id(layer) not in order:
            return layer
        config = layer.get_config()
        changes = {"seed": None if seed is None else stream_name(seed, order[id(layer)])} if "seed" in config else {}
        if rate is not None:
            changes["drop_path_rate" if "drop_path_rate" in config else "rate"] = rate
        return FixedMode(copy_layer(layer, **changes), True)

    return rebuild(model, convert=convert)


# Pixels of all samples that run as one batch: what bounds the memory.
BATCH_PIXELS = 2**20


class MonteCarlo:
    """Samples of a network with its dropout on; what comes before the first dropout layer is computed once.

    The samples run as batches. Where a convolution reads a concatenation of parts that dropout has changed and parts
    that it has not (a decoder's skips), its sum over the unchanged parts is computed once, too.

    Args:
        model: a functional Keras model with dropout layers, one image input and one output; see `segdrop.monte_carlo`.
        samples: number of samples, at least 1.
        seed: the same seed and key give the same samples.
        rate: a rate for all dropout layers instead of their own.
        multilabel: each output channel is a probability by itself.

    Raises:
        InputError: the model has no dropout, or none that its output depends on.
    """

    def __init__(
        self,
        model: keras.Model,
        samples: int,
        seed: int = 0,
        rate: float | None = None,
        multilabel: bool = False,
    ):
        self._multilabel = multilabel
        self.samples, self.seed = check_whole(samples, "samples"), check_whole(seed, "seed", minimum=0)
        twin = monte_carlo(model, rate=rate, seed=seed)
        self._before, self._after, layers = _split(twin)
        # A mask that a batch shares would be the same for all samples in it; of a user's own nothing is known.
        self._shared = any(kind_of(layer)[1] or is_custom(layer) for layer in layers)
        generators = [getattr(layer.layer, "seed_generator", None) for layer in layers]
        self._states = [generator.state for generator in generators if generator is not None]
        self._samplers: dict[tuple[int, bool], keras.Model] = {}

    def moments(self, images: np.ndarray, key: int = 0) -> np.ndarray:
        """Means over the samples, float32 (N, H, W, 2C + 1), see `from_moments`.

        Args:
            images: float32 (N, H, W, 3), 0..255, sides multiples of 32.
            key: chooses the masks, together with the seed: a tile's number, for instance.
        """
        total = 0.0
        for _, part in self._draw(images, key, summed=True):
            total = total + part
        return np.asarray(total, np.float32) / np.float32(self.samples)

    def each(self, images: np.ndarray, key: int = 0) -> np.ndarray:
        """The probabilities of each sample, float32 (N, H, W, samples * C): those of the first, of the second, ...

        Args:
            images, key: as in `moments`.
        """
        parts = []
        for count, part in self._draw(images, key, summed=False):
            part = np.asarray(part, np.float32)
            apart = np.moveaxis(part.reshape(-1, count, *part.shape[1:]), 1, 3)
            parts.append(apart.reshape(*apart.shape[:3], -1))
        return np.concatenate(parts, axis=-1)

    def _draw(self, images: np.ndarray, key: int, *, summed: bool) -> Iterator[tuple[int, np.ndarray]]:
        """How many samples of each image, and what `_sampler` gives of them, until there are all."""
        words = np.random.SeedSequence((self.seed, key)).generate_state(2 * len(self._states))
        for state, pair in zip(self._states, words.reshape(-1, 2), strict=True):
            state.assign(pair.astype("uint32"))
        before = keras.tree.flatten(self._before.predict_on_batch(images))
        size = 1 if self._shared else max(1, BATCH_PIXELS // max(1, int(np.prod(images.shape[:3]))))
        left = self.samples
        while left:
            count = min(size, left)
            yield count, self._sampler(count, summed).predict_on_batch(before)
            left -= count

    def _sampler(self, count: int, summed: bool) -> keras.Model:
        """From the unchanged tensors of N images to `count` samples of each, or to the sums of their moments."""
        if (count, summed) not in self._samplers:
            inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in self._after.inputs]
            outputs = self._after([_Repeat(count)(tensor) for tensor in inputs])
            outputs = _SumMoments(count, self._multilabel)(outputs) if summed else outputs
            self._samplers[count, summed] = keras.Model(inputs, outputs)
        return self._samplers[count, summed]


def _split(twin: keras.Model) -> tuple[keras.Model, keras.Model, list]:
    """The part of a Monte Carlo twin that is the same for all samples, the rest, and the twin's dropout layers."""
    changed: set[int] = set()
    layers = []

    def call(path, layer, args, kwargs):
        given = [tensor for tensor in keras.tree.flatten((args, kwargs)) if isinstance(tensor, keras.KerasTensor)]
        parts = _concatenated(layer, given)
        if len({id(part) in changed for part in parts}) == 2:
            sums = _conv_in_two(layer, parts, [id(part) in changed for part in parts])
            changed.add(id(sums[1]))
            kept.append(sums)
            output = _Finish(layer, name=f"{layer.name}_sum", dtype=layer.dtype_policy)(sums)
        else:
            output = layer(*args, **kwargs)
        random = _has_dropout(layer) or any(id(tensor) in changed for tensor in [*given, *parts])
        if is_dropout(layer):
            layers.append(layer)
        if random:
            changed.update(id(tensor) for tensor in keras.tree.flatten(output))
        # Tensors are told apart by their ids: none may be freed while this goes on.
        kept.append(output)
        return output

    kept: list = []
    view = functional_view(rebuild(twin, call, convert=lambda path, layer: layer))
    outputs = keras.tree.flatten(view.outputs)
    if len(outputs) != 1 or id(outputs[0]) not in changed:
        raise InputError("`model` must have one output, and dropout that it depends on.")
    nodes = call_nodes(view)
    random_nodes = [node for node in nodes if any(id(tensor) in changed for tensor in node.output_tensors)]
    border = {id(tensor): tensor for node in random_nodes for tensor in node.input_tensors if id(tensor) not in changed}
    before = keras.Model(view.inputs, list(border.values()))
    return before, keras.Model(list(border.values()), outputs[0]), layers


def _has_dropout(layer) -> bool:
    if is_model(layer):
        return any(_has_dropout(sublayer) for sublayer in layer.layers)
    return is_dropout(layer)


def _concatenated(layer, given: list) -> list:
    """The tensors whose concatenation a convolution reads; empty for anything else."""
    if type(layer) is not keras.layers.Conv2D or layer.groups != 1 or layer.data_format != "channels_last":
        return []
    made_by = given[0]._keras_history
    if not isinstance(made_by.operation, keras.layers.Concatenate) or made_by.operation.axis not in (-1, 3):
        return []
    return list(made_by.operation._inbound_nodes[made_by.node_index].input_tensors)


def _conv_in_two(conv, parts: list, changed: list[bool]) -> list:
    """The sums of a convolution over the unchanged and over the changed parts of a concatenation."""
    ends = np.cumsum([part.shape[-1] for part in parts])
    spans = [(int(end - part.shape[-1]), int(end)) for part, end in zip(parts, ends, strict=True)]
    sums = []
    for which in (False, True):
        chosen = [i for i, flag in enumerate(changed) if flag == which]
        name = f"{conv.name}_{'changed' if which else 'unchanged'}"
        layer = _PartialConv(conv, [spans[i] for i in chosen], name=name, dtype=conv.dtype_policy)
        sums.append(layer([parts[i] for i in chosen]))
    return sums


class _PartialConv(keras.layers.Layer):
    """A convolution's sum over some of its input channels."""

    def __init__(self, conv, spans: list[tuple[int, int]], **kwargs):
        super().__init__(**kwargs)
        self.conv, self.spans = conv, spans

    def call(self, parts):
        kernel = ops.cast(self.conv.kernel, self.compute_dtype)
        return ops.conv(
            ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0],
            ops.concatenate([kernel[:, :, first:last] for first, last in self.spans], axis=2),
            strides=list(self.conv.strides),
            padding=self.conv.padding,
            dilation_rate=self.conv.dilation_rate,
            data_format="channels_last",
        )


class _Finish(keras.layers.Layer):
    """The sum of a convolution's parts, its bias and its activation."""

    def __init__(self, conv, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv

    def call(self, parts):
        output = parts[0] + parts[1]
        if self.conv.use_bias:
            output = output + ops.cast(self.conv.bias, output.dtype)
        return self.conv.activation(output) if self.conv.activation else output


class _Repeat(keras.layers.Layer):
    """Each image `count` times, one after the other."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def call(self, values):
        return ops.repeat(values, self.count, axis=0)


class _SumMoments(keras.layers.Layer):
    """`moments` in the graph, summed over the `count` samples of each image."""

    def __init__(self, count: int, multilabel: bool):
        super().__init__(dtype="float32")
        self.count, self.multilabel = count, multilabel

    def call(self, p):
        whole = ops.concatenate([p, 1 - p], axis=-1) if self.multilabel or p.shape[-1] == 1 else p
        spread = -ops.sum(whole * ops.log(ops.maximum(whole, SMALLEST)), axis=-1, keepdims=True)
        each = ops.concatenate([p, p * p, spread], axis=-1)
        shape = ops.shape(each)
        return ops.sum(ops.reshape(each, (-1, self.count, *shape[1:])), axis=1)

    def compute_output_shape(self, shape):  # JAX would try it with a batch that the count does not divide
        return (None if shape[0] is None else shape[0] // self.count, *shape[1:3], 2 * shape[3] + 1)
