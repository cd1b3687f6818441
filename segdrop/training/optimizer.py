"""The optimizer, and how its learning rate goes."""

import keras


class OneDeviceAdamW(keras.optimizers.AdamW):
    """AdamW that does not sum its gradients over devices.

    TensorFlow's sum registers a gradient of its own, for good, which keeps the traced step and with it all weights and
    moments: 0.4 GB for each training of a process.
    """

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
