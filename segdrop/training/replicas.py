"""One training over several GPUs: each has a replica of the network and takes an equal part of every batch."""

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from ..errors import InputError
from ..surgery.rebuild import rebuild


def strategy_for(
    gpus: str, batch_size: int, devices: Sequence[str] | None = None
) -> tf.distribute.MirroredStrategy | None:
    """The strategy that trains on several devices, or None where one device is to be used or there is only one.

    Args:
        gpus: `"all"` takes every visible GPU, anything else one device.
        batch_size: images in a batch of all devices together.
        devices: names of devices to take instead of the GPUs (`"CPU:0"`).

    Raises:
        InputError: the batch cannot be divided into equal parts.
    """
    if devices is None:
        devices = [f"GPU:{number}" for number in range(len(tf.config.get_visible_devices("GPU")))]
    if gpus != "all" or len(devices) < 2:
        return None
    if batch_size % len(devices):
        raise InputError(f"`batch_size` must be a multiple of the {len(devices)} devices, got batch_size={batch_size}.")
    return _strategy(tuple(devices))


@functools.cache
def _strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    # A second strategy would number its exchanges between the devices from the beginning, and a second training of the
    # same process be aborted by a mismatch with the first.
    return tf.distribute.MirroredStrategy(devices)


def replicate(model: keras.Model, strategy: tf.distribute.Strategy) -> keras.Model:
    """Return a copy of `model` to fit under `strategy`, which leaves `model` as it is.

    A step on a batch equals the step of one device on that batch: BatchNorm takes its statistics over all replicas.
    Dropout draws masks of its own in every replica, which depend on the layer's seed and the replica's number; without
    this all replicas would draw the same. Compile the copy within `strategy.scope()`, and do not save it: for that,
    and to predict, there is `model`, by way of `copy_state`.

    Args:
        model: a functional Keras model, with its state of BatchNorm, dropout and rates, which the copy starts from.

    Raises:
        InputError: a layer cannot be copied.
    """
    with strategy.scope():
        copy = rebuild(model)
    copy.dtype_policy = model.dtype_policy  # compile looks here whether to scale the loss
    copy_state(model, copy)
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
        if getattr(layer, "seed_generator", None) is not None:
            # Another generator in its place would be a second one to Keras, with a state that `model` does not have.
            layer.seed_generator.__class__ = _OwnSeeds
    return copy


def copy_state(source: keras.Model, target: keras.Model) -> None:
    """Give all variables of `target` the values in `source`: weights, BatchNorm's and dropout's state, rates."""
    for theirs, ours in zip(source.variables, target.variables, strict=True):
        ours.assign(keras.ops.convert_to_numpy(theirs))


class _OwnSeeds(keras.random.SeedGenerator):
    """Seeds that differ between replicas. The state is the same in all, so that it is saved and restored as usual."""

    def next(self, ordered=True):
        seed = super().next(ordered)
        context = tf.distribute.get_replica_context()
        if context is None:  # the layer is being built
            return seed
        return tf.random.experimental.stateless_fold_in(seed, context.replica_id_in_sync_group)


class AgreedLossScale(keras.optimizers.LossScaleOptimizer):
    """Loss scaling for float16 that skips a step when the gradients of *any* replica overflow.

    Keras asks the first replica alone, before the gradients are summed: an overflow in another one would make all
    weights NaN.
    """

    def check_finite(self, grads):
        overflow = tf.cast(tf.logical_not(super().check_finite(grads)), tf.float32)
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, overflow) == 0


class UpdateOriginal(keras.callbacks.Callback):
    """After each epoch give the original the state of the replicated model, and validate by it, on one device.

    It adds `val_` scores to the epoch's logs: put it before the callbacks that need them. `fit(validation_data=...)`
    would divide each batch among the replicas, and one of a single image leaves nothing for the others.

    Args:
        original: what the model in training was replicated from, compiled with loss and metrics.
        batches: pairs of images and masks, gone through once an epoch; None for no validation.
    """

    def __init__(self, original: keras.Model, batches: tf.data.Dataset | None = None):
        super().__init__()
        self._original, self._batches = original, batches

    def on_epoch_end(self, epoch, logs=None):
        copy_state(self.model, self._original)
        if self._batches is not None:
            scores = self._original.evaluate(self._batches, verbose=0, return_dict=True)
            if logs is not None:
                logs.update({f"val_{name}": value for name, value in scores.items()})
