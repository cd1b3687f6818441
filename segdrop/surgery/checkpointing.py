"""Gradient checkpointing: what is cheap to compute is computed again for the gradient, and not held until then."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras

CHEAP = (  # layers without weights or state, of a pass over their maps
    keras.layers.Activation,
    keras.layers.AveragePooling2D,
    keras.layers.Concatenate,
    keras.layers.LeakyReLU,
    keras.layers.MaxPooling2D,
    keras.layers.ReLU,
    keras.layers.UpSampling2D,
    keras.layers.ZeroPadding2D,
)
_AGAIN = "_segdrop_again"  # of a tensor that is not held: how it is computed again


@contextlib.contextmanager
def without_folding() -> Iterator[None]:
    """TensorFlow's folding of constants switched off for what is run within: with it most of the gain is lost."""
    import tensorflow as tf

    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({**before, "constant_folding": False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"constant_folding": True, **before})


def is_cheap(layer) -> bool:
    """Whether what a layer gives can be computed again in a pass over its maps, and is the same then."""
    return type(layer) in CHEAP and layer.activity_regularizer is None


def checkpointed(function: Callable, *inputs, cheap: bool = True):
    """What `function(*inputs)` gives; its gradient holds neither its inputs nor its result, where these are cheap.

    Under TensorFlow. In the backward pass the inputs are found again from what is held, by the functions that made
    them, each once for all that need its result; then `function`, which must have no state, is called anew for its
    gradient.

    Args:
        function: gives a tensor, or a tuple of which the first has a gradient.
        inputs: tensors; variables must be among them, and not within `function`, to have a gradient.
        cheap: compute the result again for those that need it, instead of holding it.
    """
    from tensorflow.python.eager import record  # tf.custom_gradient would keep the traced step for good

    with record.stop_recording():
        results = function(*inputs)
    first = results[0] if isinstance(results, tuple) else results
    if any(first is tensor for tensor in inputs):  # a linear activation
        return results
    again = _Again(function, inputs)
    record.record_operation("Checkpointed", [first], list(inputs), again.gradient)
    if cheap:
        setattr(first, _AGAIN, again)
    return results


class _Again:
    """A call that can be made again, in a backward pass."""

    def __init__(self, function: Callable, inputs: Sequence):
        self._function, self._inputs, self._made = function, inputs, None

    def gradient(self, above):
        tape, inputs, result = self._make(above)
        return tape.gradient(result, inputs, output_gradients=[above])

    def result(self, above):
        return self._make(above)[2]

    def _make(self, above):
        import tensorflow as tf

        if self._made is None:
            inputs = [_held(tensor, above) for tensor in self._inputs]
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(inputs)
                results = self._function(*inputs)
            self._made = tape, inputs, results[0] if isinstance(results, tuple) else results
        return self._made


def _held(tensor, above):
    """The tensor, or another of the same values, computed not before there is `above`."""
    import tensorflow as tf

    again = getattr(tensor, _AGAIN, None)
    if again is not None:
        return again.result(above)
    with tf.control_dependencies([above]):
        return tf.identity(tensor)
