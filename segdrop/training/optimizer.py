"""The optimizer, and how its learning rate goes."""

from collections.abc import Iterable

import keras
import tensorflow as tf


class PartwiseAdamW(keras.optimizers.AdamW):
    """AdamW that can take smaller or larger steps in a part of the network.

    What is multiplied is the learning rate, and with it the step and the weight decay, as in PyTorch's parameter
    groups: AdamW's step is the same for gradients of any scale. Its state is that of Keras's AdamW.

    Where it averages weights (`use_ema`), it can average more than what it moves: BatchNorm's statistics, which belong
    to the weights that they were met with. Their averages follow the others in `variables`. This is for TensorFlow;
    under JAX an optimizer is not given what it does not move.

    Example:
        >>> encoder, decoder = keras.Variable([1.0]), keras.Variable([1.0])
        >>> optimizer = PartwiseAdamW(0.1, weight_decay=0.0)
        >>> optimizer.scale_rate([encoder], 0.5)
        >>> optimizer.apply([np.ones(1), np.ones(1)], [encoder, decoder])
        >>> round(float(encoder[0]), 4), round(float(decoder[0]), 4)
        (0.95, 0.9)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._factors: dict = {}  # by Keras's key of a variable, the same on all devices
        self._companions: list = []  # averaged beside what is moved

    def scale_rate(self, variables: Iterable, factor: float) -> None:
        """Multiply the learning rate of `variables` by `factor`."""
        self._factors.update({self._var_key(variable): factor for variable in variables})

    def average_too(self, variables: Iterable) -> None:
        """Average `variables`, too, at each step, and put their averages in their place with the others; before
        `build`."""
        self._companions = list(variables)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        if self.use_ema:
            self._model_variables_moving_average += self.add_optimizer_variables(self._companions, "average")

    @property
    def averaged(self) -> list:
        """The variables that have an average."""
        return [*self._trainable_variables, *self._companions] if self.use_ema else []

    def _update_model_variables_moving_average(self, trainable_variables):
        super()._update_model_variables_moving_average([*trainable_variables, *self._companions])

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        super()._overwrite_model_variables_with_average_value([*trainable_variables, *self._companions])

    def _apply_weight_decay(self, variables):
        """Left to `update_step`, which knows the rate of each variable."""

    def update_step(self, gradient, variable, learning_rate):
        rate = self._rate_of(variable, learning_rate)
        if self._use_weight_decay(variable):
            self.assign_sub(variable, variable * self.weight_decay * rate)
        super().update_step(gradient, variable, rate)

    def _rate_of(self, variable, learning_rate):
        return keras.ops.cast(learning_rate, variable.dtype) * self._factors.get(self._var_key(variable), 1.0)


class OneDeviceAdamW(PartwiseAdamW):
    """AdamW on one device, under TensorFlow in one pass over each weight where Keras's takes seven.

    It does not sum its gradients over devices: TensorFlow's sum registers a gradient of its own, for good, which keeps
    the traced step and with it all weights and moments, 0.4 GB for each training of a process.
    """

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() != "tensorflow" or self.amsgrad or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        rate = self._rate_of(variable, learning_rate)
        if self._use_weight_decay(variable):
            variable.assign(variable * (1 - self.weight_decay * rate))
        step = tf.cast(self.iterations, variable.dtype) + 1
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.cast(self.beta_1, variable.dtype) ** step,
            beta2_power=tf.cast(self.beta_2, variable.dtype) ** step,
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


@keras.saving.register_keras_serializable("segdrop")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over the first twentieth of the steps, then cosine decay to zero.

    Args:
        peak: learning rate after warm-up.
        steps: length of the whole training.
        offset: steps already taken by an earlier phase.

    Example:
        >>> rate = WarmupCosine(peak=0.001, steps=100)
        >>> [round(float(rate(step)), 6) for step in (0, 5, 100)]
        [0.0, 0.001, 0.0]
    """

    def __init__(self, peak: float, steps: int, offset: int = 0):
        self.peak, self.steps, self.offset = peak, steps, offset
        warmup = max(1, steps // 20)
        self._schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup
        )

    def __call__(self, step):
        return self._schedule(step + self.offset)

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "offset": self.offset}
