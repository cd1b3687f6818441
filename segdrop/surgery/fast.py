"""A twin of a model that computes the same and trains faster: BatchNorm as one operation, padding within convolutions.

Keras makes a BatchNorm of means, squares, products and casts, each of which reads and writes the whole map; TensorFlow
has one operation for it, forward and backward. Padding by one pixel before a convolution copies the whole map, too.
"""

import math
from collections import Counter

import keras
from keras import ops

from ..errors import InputError
from .checkpointing import checkpointed, is_cheap
from .graph import consumers, functional_view, trace
from .rebuild import rebuild

DEEP = 256  # channels of a convolution whose kernels may be larger than its maps
FEWEST = 8  # channels of a BatchNorm to be fused: of an image's three Keras's own took a fifth of the time in bfloat16


def fast(model: keras.Model, *, checkpointing: bool = False) -> keras.Model:
    """Return a twin of `model` that shares its weights, computes the same, and trains faster.

    Fit the twin and save the model, which is of Keras's own layers and loads anywhere: what one learns the other has.
    On 2 cores a step of the resnet34 U-Net takes 0.70 to 0.87 of its time, `segdrop.train`'s AdamW included
    (docs/performance.md).

    What is exchanged, and all else is shared as it is: a BatchNorm of maps (N, H, W, C) for TensorFlow's fused
    operation, and zero padding before a convolution of stride 1 for the convolution's own. In float32 the second is
    exact and the first equal to rounding; in float16 and bfloat16 the fused operation normalises in float32 and rounds
    once. In bfloat16 on a CPU the kernels' gradient is found in another order where maps are small. Under backends
    other than TensorFlow only padding is exchanged.

    The flags `trainable` are read when a step is traced, as Keras reads them: set them before `compile`. Look at the
    model and not at the twin for its layers: `segdrop.batchnorm_shift`, for instance, does not know the fused ones.

    Args:
        model: a functional or Sequential Keras 3 model; nested models are entered for their BatchNorms.
        checkpointing: take less memory in training, under TensorFlow: what is cheap to compute (activations,
            BatchNorms, pooling, ...) is computed again for the gradient. Steps take longer; switch TensorFlow's
            `constant_folding` off, or most of the gain is lost (docs/performance.md#memory).

    Returns:
        A functional model, not compiled, with the layer names and the variables of `model`, in the same order.

    Raises:
        TypeError: `model` is neither functional nor Sequential.
        InputError: `checkpointing` under another backend than TensorFlow.

    Example:
        >>> model = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> twin = segdrop.fast(model)
        >>> twin.compile("sgd", "mse")
        >>> history = twin.fit(np.ones((2, 64, 64, 3), "float32"), np.ones((2, 64, 64, 1), "float32"), verbose=0)
        >>> all(ours is theirs for ours, theirs in zip(model.weights, twin.weights, strict=True))
        True
    """
    if checkpointing and keras.backend.backend() != "tensorflow":
        raise InputError(f"`checkpointing` needs Keras's TensorFlow backend, not {keras.backend.backend()}.")
    view = functional_view(model)
    padding_of = _paddings_within(view)
    skipped = set(padding_of.values())
    results = {id(tensor._keras_history.operation) for tensor in view.outputs}

    def convert(path, layer):
        if path in padding_of or _has_large_kernels(layer):
            return _Conv(layer, checkpointing)
        if _can_be_fused(layer):
            return _FusedBatchNorm(layer, checkpointing)
        if checkpointing and id(layer) not in results:
            if is_cheap(layer):
                return _Cheap(layer)
            if _is_convolution(layer):
                return _CheckpointedConv(layer, checkpointing)
        return layer

    def call(path, layer, args, kwargs):
        return args[0] if path in skipped else layer(*args, **kwargs)

    return rebuild(view, call, convert=convert)


def _paddings_within(view: keras.Model) -> dict[str, str]:
    """The convolutions that can do the padding before them, and the padding of each, by path."""
    calls = trace(view)
    times = Counter(id(call.layer) for call in calls)
    results = {id(tensor._keras_history.operation) for tensor in view.outputs}
    found: dict[str, str] = {}
    for call in calls:
        after = consumers(calls, call)
        both = [call, *after]
        if (
            after
            and id(call.layer) not in results
            and all(times[id(each.layer)] == 1 and "/" not in each.path for each in both)
            and all(_takes(each.layer, call.layer) for each in after)
        ):
            found |= {each.path: call.path for each in after}
    return found


def _takes(layer, padding) -> bool:
    """Whether a convolution's own padding, "same", is what the layer `padding` does before it."""
    if not isinstance(padding, keras.layers.ZeroPadding2D) or not _is_plain(layer):
        return False
    if layer.padding != "valid" or layer.data_format != padding.data_format:
        return False
    spans = zip(layer.kernel_size, layer.dilation_rate, padding.padding, strict=True)
    return all(before == after and before + after == dilation * (side - 1) for side, dilation, (before, after) in spans)


def _is_plain(layer) -> bool:
    """Whether a layer is a convolution that `_Conv` can stand for, but for its padding."""
    # Of a stride of 2 "same" pads at the other end, and TensorFlow's explicit padding took 35 times as long on a CPU.
    return type(layer) is keras.layers.Conv2D and layer.strides == (1, 1) and layer.activity_regularizer is None


def _is_convolution(layer) -> bool:
    return type(layer) is keras.layers.Conv2D and layer.built and layer.activity_regularizer is None


def _has_large_kernels(layer) -> bool:
    """Whether a convolution may be one whose kernels are larger than its maps."""
    return (
        _is_plain(layer)
        and layer.built
        and layer.padding == "same"
        and layer.data_format == "channels_last"
        and _gains_by_product(layer)
    )


def _gains_by_product(layer) -> bool:
    """Whether the gradient of a convolution's kernels may be found sooner as a product of matrices."""
    return (
        keras.backend.backend() == "tensorflow"
        and layer.compute_dtype == "bfloat16"  # in float32 oneDNN's own way is the faster one
        and layer.groups == 1
        and layer.dilation_rate == (1, 1)
        and layer.kernel_size == (3, 3)
        and layer.kernel.shape[2] >= DEEP
    )


def _can_be_fused(layer) -> bool:
    return (
        keras.backend.backend() == "tensorflow"
        and type(layer) is keras.layers.BatchNormalization
        and layer.built
        and layer.input_spec.ndim == 4
        and layer.axis in (-1, 3)
        and layer.moving_mean.shape[0] >= FEWEST
        and not layer.synchronized
        and layer.activity_regularizer is None
        and not getattr(layer, "renorm", False)  # Keras has it since 3.13
        and layer.compute_dtype in ("float32", "float16", "bfloat16")
    )


class _Twin(keras.layers.Layer):
    """Does what `layer` does, in another way, with its name, its policy and its variables."""

    def __init__(self, layer, checkpointing: bool = False):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer, self.checkpointing = layer, checkpointing
        self.supports_masking = layer.supports_masking
        self.built = True

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


class _Cheap(_Twin):
    """A layer without weights, whose result is computed again for the gradient."""

    def call(self, inputs):
        return checkpointed(
            lambda *maps: self.layer.call(keras.tree.pack_sequence_as(inputs, maps)), *keras.tree.flatten(inputs)
        )


class _CheckpointedConv(_Twin):
    """A convolution whose gradient does not hold what it was given."""

    def call(self, inputs):
        conv, kernel = self.layer, ops.cast(self.layer.kernel, self.compute_dtype)
        if self.checkpointing:
            output = checkpointed(self._convolve, inputs, kernel, cheap=False)
        else:
            output = self._convolve(inputs, kernel)
        if conv.use_bias:
            shape = (1, 1, 1, -1) if conv.data_format == "channels_last" else (1, -1, 1, 1)
            output += ops.reshape(ops.cast(conv.bias, self.compute_dtype), shape)
        return conv.activation(output)

    def _convolve(self, inputs, kernel):
        return self.layer.convolution_op(inputs, kernel)


class _Conv(_CheckpointedConv):
    """A convolution of stride 1 together with the padding before it."""

    def _convolve(self, inputs, kernel):
        conv = self.layer
        if _gains_by_product(conv) and _are_small(inputs.shape):
            return _conv_of_small_maps(inputs, kernel)
        return ops.conv(inputs, kernel, padding="same", dilation_rate=conv.dilation_rate, data_format=conv.data_format)

    def compute_output_spec(self, inputs):
        shape = list(inputs.shape)
        shape[-1 if self.layer.data_format == "channels_last" else 1] = self.layer.filters
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


def _are_small(shape: tuple[int | None, ...]) -> bool:
    """Whether maps (N, H, W, C) have so few pixels that the kernels are what there is to write."""
    import tensorflow as tf

    return None not in shape and math.prod(shape[:3]) <= 2 * shape[3] and not tf.config.list_physical_devices("GPU")


def _conv_of_small_maps(images, kernel):
    """A convolution of 3 x 3 whose gradient for the kernel is one product of matrices.

    oneDNN finds that gradient in blocks, which have to be put in order afterwards: for maps of 4 x 4 pixels and 512
    channels that takes as long again.
    """
    import tensorflow as tf
    from tensorflow.python.eager import record  # tf.custom_gradient would keep the traced step for good

    def gradient(above):
        height, width = images.shape[1:3]
        padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
        spots = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        patches = tf.reshape(tf.concat(spots, axis=-1), (-1, 9 * images.shape[3]))
        product = tf.matmul(patches, tf.reshape(above, (-1, above.shape[3])), transpose_a=True)
        below = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=images.shape, filter=kernel, out_backprop=above, strides=[1, 1, 1, 1], padding="SAME"
        )
        return below, tf.reshape(product, kernel.shape)

    images, kernel = tf.convert_to_tensor(images), tf.convert_to_tensor(kernel)
    with record.stop_recording():
        result = tf.nn.conv2d(images, kernel, 1, "SAME")
    record.record_operation("ConvOfSmallMaps", [result], [images, kernel], gradient)
    return result


class _FusedBatchNorm(_Twin):
    """A BatchNorm by `FusedBatchNormV3`."""

    def call(self, inputs, training=False, mask=None):
        norm = self.layer
        if mask is not None:
            return norm(inputs, training=training, mask=mask)
        import tensorflow as tf

        mean, variance = (tf.convert_to_tensor(value) for value in (norm.moving_mean, norm.moving_variance))
        scale = tf.convert_to_tensor(norm.gamma) if norm.scale else tf.ones_like(mean)
        offset = tf.convert_to_tensor(norm.beta) if norm.center else tf.zeros_like(mean)
        by_batch = bool(training and norm.trainable)

        def normalise(maps, scale, offset):
            return tuple(
                tf.raw_ops.FusedBatchNormV3(
                    x=maps,
                    scale=scale,
                    offset=offset,
                    mean=mean,
                    variance=variance,
                    epsilon=norm.epsilon,
                    is_training=by_batch,
                )
            )

        given = inputs, scale, offset
        outputs = checkpointed(normalise, *given) if self.checkpointing else normalise(*given)
        if by_batch:
            _, batch_mean, batch_variance, *_ = outputs
            # The operation tells the variance that the batch is a sample of, Keras's remembers the batch's own.
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], batch_variance.dtype)
            batch_variance *= (count - 1) / count
            for moving, old, new in (
                (norm.moving_mean, mean, batch_mean),
                (norm.moving_variance, variance, batch_variance),
            ):
                moving.assign(old * norm.momentum + new * (1 - norm.momentum))
        return outputs[0]
