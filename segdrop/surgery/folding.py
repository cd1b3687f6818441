"""A network for prediction alone: BatchNorm within the convolution before it, kernels in the type computed in."""

from collections import Counter
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from .fast import fast
from .graph import call_nodes, functional_view
from .rebuild import copy_layer, rebuild


def folded(model: keras.Model) -> keras.Model:
    """Return a model that predicts what `model` predicts, in less time; make another when `model` has changed.

    A BatchNorm that follows a convolution is a factor and a shift of each channel, which go into kernel and bias: the
    same in float32 but for rounding. In float16 and bfloat16 convolutions hold their weights in that type, rounded
    once, where Keras's round them in each call. What is not a convolution of Keras's own is shared, and the whole goes
    through `segdrop.fast`.

    Args:
        model: a functional or Sequential Keras 3 model. Nested models are used as they are.

    Raises:
        TypeError: `model` is neither functional nor Sequential.

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> [sum("bn" in layer.name for layer in network.layers) for network in (model, folded(model))]
        [29, 10]
    """
    view = functional_view(model)
    copies, gone = {}, set()
    for convolution, norm in _norms_after_convolutions(view):
        kernel, bias = _folded_weights(convolution, norm)
        # A channel that hardly varies has a large factor, which may be more than float16 has.
        if all(np.isfinite(ops.convert_to_numpy(ops.cast(w, convolution.compute_dtype))).all() for w in (kernel, bias)):
            copies[convolution.name] = _copy(convolution, kernel, bias)
            gone.add(norm.name)

    def convert(path, layer):
        if path in copies:
            return copies[path]
        if _is_convolution(layer) and layer.compute_dtype != layer.variable_dtype:
            return _copy(layer, *layer.get_weights())
        return layer

    return fast(rebuild(view, lambda path, layer, a, k: a[0] if path in gone else layer(*a, **k), convert=convert))


def _norms_after_convolutions(view: keras.Model) -> Iterator[tuple]:
    """The convolutions whose output is taken by a BatchNorm alone, each with it."""
    nodes = call_nodes(view)
    times = Counter(id(node.operation) for node in nodes)
    readers: dict[int, list] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node)
    results = {id(tensor) for tensor in view.outputs}
    for node in nodes:
        after = readers.get(id(node.output_tensors[0]), [])
        if len(after) != 1 or id(node.output_tensors[0]) in results:
            continue
        convolution, norm = node.operation, after[0].operation
        called_once = times[id(convolution)] == times[id(norm)] == 1
        if called_once and _can_take(convolution, norm) and not after[0].arguments.kwargs.get("training"):
            yield convolution, norm


def _is_convolution(layer) -> bool:
    return type(layer) is keras.layers.Conv2D and layer.built and not layer.lora_enabled


def _can_take(convolution, norm) -> bool:
    """Whether a convolution can do what the BatchNorm after it does in prediction."""
    if not _is_convolution(convolution) or type(norm) is not keras.layers.BatchNormalization or not norm.built:
        return False
    channels = -1 if convolution.data_format == "channels_last" else 1
    return (
        convolution.activation is keras.activations.linear
        and norm.axis in (channels, channels % 4)
        and convolution.compute_dtype == norm.compute_dtype
        and convolution.variable_dtype == norm.variable_dtype == "float32"
        and convolution.activity_regularizer is None
        and norm.activity_regularizer is None
    )


def _folded_weights(convolution, norm) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, float32, of a convolution that does what `norm` does after it."""
    mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
    factor = (np.asarray(norm.gamma) if norm.scale else 1) / np.sqrt(variance + norm.epsilon)
    bias = np.asarray(convolution.bias) if convolution.use_bias else 0
    return np.asarray(convolution.kernel) * factor, (bias - mean) * factor + (
        np.asarray(norm.beta) if norm.center else 0
    )


def _copy(convolution, kernel, bias=None):
    """The convolution with other weights, held in the type that it computes in."""
    copy = copy_layer(convolution, use_bias=bias is not None, dtype=convolution.compute_dtype)
    channels = kernel.shape[2] * convolution.groups
    copy.build((None, None, None, channels) if copy.data_format == "channels_last" else (None, channels, None, None))
    copy.set_weights([kernel] if bias is None else [kernel, bias])
    return copy
