"""BatchNorm under dropout: how far its moving variance is from that of inference, and how to bring it back."""

from collections.abc import Iterable

import keras
import numpy as np
from keras.layers import BatchNormalization

from ..errors import InputError
from ..layers import FixedMode, is_dropout
from ..show.tables import Table
from ..surgery.graph import call_nodes, functional_view, trace
from ..surgery.rebuild import rebuild
from .inspection import decoder_paths


def batchnorm_shift(model: keras.Model, dataset: Iterable) -> Table:
    """Compare the moving variance of BatchNorm with the variance that it meets at inference.

    Dropout before a BatchNorm makes the variance in training, which the moving variance follows, larger than at
    inference: activations are then scaled down, layer after layer.

    Args:
        dataset: batches of images as the model takes them, float32 (N, H, W, C), 0..255, or tuples that begin with
            such a batch; a `tf.data.Dataset` or any other finite iterable. It is gone through once.

    Returns:
        A table with a row per BatchNorm, of the encoder alone where the model has a decoder: `layer`; `moving` and
        `test`, the means over the channels of the moving variance and of the variance of its inputs over all pixels of
        the data set; `ratio`, the median over the channels of moving over test variance: 1 is no shift.

    Raises:
        InputError: the model has no BatchNorm, or the data set no batch.

    Example:
        >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.BatchNormalization(name="bn")])
        >>> images = np.array([0, 2, 4, 6], "float32").reshape(1, 2, 2, 1)
        >>> shift = segdrop.batchnorm_shift(model, [images])
        >>> shift[0]["moving"], shift[0]["test"], round(shift[0]["ratio"], 2)
        (1.0, 5.0, 0.2)

    References:
        Li et al. 2019, Understanding the disharmony between dropout and batch normalization,
        https://arxiv.org/abs/1801.05134.
    """
    rows = []
    for layer, _, test in _input_statistics(model, dataset):
        moving = np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), "float64")
        rows.append(
            {
                "layer": layer.name,
                "moving": float(moving.mean()),
                "test": float(test.mean()),
                # BatchNorm adds epsilon to a variance before it divides by it; a channel may be constant.
                "ratio": float(np.median((moving + layer.epsilon) / (test + layer.epsilon))),
            }
        )
    return Table(rows, "Variance that BatchNorm remembers (moving) and meets at inference (test)")


def recalibrate_batchnorm(model: keras.Model, dataset: Iterable, *, dropout: bool = False) -> None:
    """Re-estimate the moving statistics of every BatchNorm of `model`, in place, with dropout off.

    They become the means over the batches of the batches' statistics, BatchNorm normalising by the batch meanwhile, as
    in training. Weights, `trainable` flags and momenta stay as they are.

    Args:
        dataset: as in `batchnorm_shift`. Take batches like those of training, as large and as mixed: the statistics
            of one image alone are not those of a batch. Each batch counts the same.
        dropout: leave dropout on: the statistics that training would arrive at with these weights.

    A BatchNorm that is called several times gets the statistics of its last call.

    Raises:
        InputError: the model has no BatchNorm, or one inside another layer; the data set has no batch, or one with
            values that are not finite. Then nothing is changed.

    Example:
        >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.BatchNormalization()])
        >>> images = np.array([0, 2, 4, 6], "float32").reshape(1, 2, 2, 1)
        >>> segdrop.recalibrate_batchnorm(model, [images])
        >>> gamma, beta, mean, variance = model.get_weights()
        >>> round(float(mean[0]), 3), round(float(variance[0]), 3)
        (3.0, 5.0)

    References:
        The way of `torch.optim.swa_utils.update_bn`.
    """

    view = functional_view(model)
    layers = list({id(c.layer): c.layer for c in trace(view) if isinstance(c.layer, BatchNormalization)}.values())
    if not layers:
        raise InputError("`model` has no BatchNorm layer.")
    hidden = {layer.name for layer in view._flatten_layers() if isinstance(layer, BatchNormalization)}
    hidden -= {layer.name for layer in layers}
    if hidden:
        raise InputError(f"BatchNorm {min(hidden)!r} is part of another layer, where it cannot be recalibrated.")

    def convert(path, layer):
        if isinstance(layer, BatchNormalization):
            return FixedMode(layer, True)
        return FixedMode(layer, dropout) if is_dropout(layer) else layer

    twin = rebuild(view, convert=convert)
    variables = [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    settings = [(layer.trainable, layer.momentum) for layer in layers]
    means = [np.zeros(value.shape) for value in before]
    try:
        for layer in layers:
            layer.trainable = True  # a frozen BatchNorm does not normalise by the batch
            layer.momentum = 0.0  # the moving statistics are then the batch's
        for count, images in enumerate(_images(dataset, view)):
            twin.predict_on_batch(images)
            for mean, variable in zip(means, variables, strict=True):
                mean += (keras.ops.convert_to_numpy(variable) - mean) / (count + 1)
            if not all(np.isfinite(mean).all() for mean in means):
                raise InputError(f"BatchNorm's statistics of batch {count + 1} are not finite; nothing was changed.")
    except BaseException:
        means = before
        raise
    finally:
        for variable, value in zip(variables, means, strict=True):
            variable.assign(value)
        for layer, (trainable, momentum) in zip(layers, settings, strict=True):
            layer.trainable, layer.momentum = trainable, momentum


def rebase_batchnorm(model: keras.Model, dataset: Iterable) -> int:
    """Give the encoder's BatchNorms the statistics of other images, in place, without changing what the model computes.

    Mean and variance become those of each BatchNorm's inputs over the data set, and scale and shift take up the
    difference: gamma' = gamma sqrt((v' + e) / (v + e)), beta' = beta + gamma (m' - m) / sqrt(v + e). So a training that
    begins with weights from other images begins with statistics of its own. A BatchNorm without scale or shift stays
    as it is.

    Args:
        dataset: as in `batchnorm_shift`.

    Returns:
        How many BatchNorms were changed.

    Raises:
        InputError: the model has no BatchNorm, the data set no batch, or the statistics are not finite; then nothing
            is changed.

    Example:
        >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.BatchNormalization()])
        >>> images = np.array([0, 2, 4, 6], "float32").reshape(1, 2, 2, 1)
        >>> segdrop.rebase_batchnorm(model, [images])
        1
        >>> [round(float(weight[0]), 2) for weight in model.get_weights()]  # gamma, beta, mean, variance
        [2.24, 3.0, 3.0, 5.0]
    """
    changes = []
    for layer, mean, variance in _input_statistics(model, dataset):
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise InputError(f"The statistics of {layer.name!r} are not finite; nothing was changed.")
        if layer.scale and layer.center:
            gamma, beta, old_mean, old_variance = (np.asarray(weight, "float64") for weight in layer.get_weights())
            deviation = np.sqrt(old_variance + layer.epsilon)
            shifted = beta + gamma * (mean - old_mean) / deviation
            scaled = gamma * np.sqrt(variance + layer.epsilon) / deviation
            changes.append((layer, [scaled, shifted, mean, variance]))
    for layer, weights in changes:
        layer.set_weights(weights)
    return len(changes)


def statistics_of(model: keras.Model) -> list[keras.Variable]:
    """The moving means and variances of all BatchNorms, those of models within the model, too."""
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, BatchNormalization)]
    return [statistic for norm in norms for statistic in (norm.moving_mean, norm.moving_variance)]


def _input_statistics(model: keras.Model, dataset: Iterable) -> list[tuple[BatchNormalization, np.ndarray, np.ndarray]]:
    """Each BatchNorm outside of a decoder with mean and variance of its inputs at inference, float64 (channels,)."""
    view = functional_view(model)
    decoder = decoder_paths(trace(view))
    nodes = [
        node
        for node in call_nodes(view)
        if isinstance(node.operation, BatchNormalization) and node.operation.name not in decoder
    ]
    if not nodes:
        raise InputError("`model` has no BatchNorm layer; those within nested models are not seen.")
    layers = [node.operation for node in nodes]
    probe = keras.Model(view.inputs, [node.input_tensors[0] for node in nodes])
    sums = [np.zeros((3, 1))] * len(layers)
    for images in _images(dataset, view):
        for i, (layer, values) in enumerate(
            zip(layers, keras.tree.flatten(probe.predict_on_batch(images)), strict=True)
        ):
            values = np.moveaxis(np.asarray(values, "float64"), layer.axis, -1)
            values = values.reshape(-1, values.shape[-1])
            count = np.full(values.shape[-1], len(values))
            sums[i] = sums[i] + np.stack([count, values.sum(axis=0), np.square(values).sum(axis=0)])
    return [
        (layer, total / count, np.maximum(squares / count - np.square(total / count), 0))
        for layer, (count, total, squares) in zip(layers, sums, strict=True)
    ]


def _images(dataset: Iterable, model: keras.Model) -> Iterable:
    """The images of each batch, as arrays, whatever the backend; InputError when there is none, or one is no batch."""
    empty = True
    for batch in dataset:
        empty = False
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        images = keras.tree.map_structure(np.asarray, images)
        for tensor, array in zip(model.inputs, keras.tree.flatten(images), strict=False):
            if array.ndim != len(tensor.shape):
                raise InputError(
                    f"`dataset` must give batches of {len(tensor.shape)} dimensions, got one of the shape "
                    f"{array.shape}; a single batch is given as [images]."
                )
        yield images
    if empty:
        raise InputError("`dataset` has no batch.")
