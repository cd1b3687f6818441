"""Dice and IoU as Keras metrics."""

import keras
from keras import ops

from ..conventions import IGNORED


class _Overlap(keras.metrics.Metric):
    """Confusion counts over an epoch; see `Dice` and `IoU`."""

    def __init__(self, classes: int = 2, threshold: float = 0.5, name: str | None = None):
        super().__init__(name=name)
        self.classes, self.threshold = classes, threshold
        # Whole numbers: float32 would stop counting at 2^24 pixels.
        self.counts = self.add_variable((3, classes), initializer="zeros", dtype="int64", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        truth = ops.cast(ops.squeeze(y_true, -1), "int32")
        pred = (
            ops.cast(y_pred[..., 0] >= self.threshold, "int32")
            if y_pred.shape[-1] == 1
            else ops.argmax(y_pred, axis=-1)
        )
        valid = truth != IGNORED
        counts = []
        for index in range(self.classes):
            t, p = ops.logical_and(truth == index, valid), ops.logical_and(pred == index, valid)
            both = ops.count_nonzero(ops.logical_and(t, p))
            counts.append((both, ops.count_nonzero(p) - both, ops.count_nonzero(t) - both))
        table = ops.stack([ops.stack(column) for column in zip(*counts, strict=True)])
        self.counts.assign_add(ops.cast(table, self.counts.dtype))

    def result(self):
        tp, fp, fn = (ops.cast(self.counts[row], "float32") for row in range(3))
        score, defined = self._score(tp, fp, fn)
        defined = ops.cast(defined, "float32")[1:]
        return ops.sum(score[1:] * defined) / ops.sum(defined)

    def get_config(self):
        return {"name": self.name, "classes": self.classes, "threshold": self.threshold}


class Dice(_Overlap):
    """Mean over the foreground classes of the micro Dice; NaN where no class is defined.

    Args:
        classes: number of classes counting the background, at least 2.
        threshold: for models with one output channel.

    Call arguments:
        y_true: (N, H, W, 1) class indices, IGNORED (255) where not scored.
        y_pred: (N, H, W, C) probabilities.

    Example:
        >>> metric, truth = Dice(), np.array([0, 0, 1, 1]).reshape(1, 2, 2, 1)
        >>> metric.update_state(truth, np.array([0.1, 0.9, 0.9, 0.9]).reshape(1, 2, 2, 1))
        >>> round(float(metric.result()), 3)
        0.8
    """

    def _score(self, tp, fp, fn):
        total = 2 * tp + fp + fn
        return 2 * tp / ops.maximum(total, 1), total > 0


class IoU(_Overlap):
    """Mean over the foreground classes of the micro IoU; arguments as in `Dice`.

    Example:
        >>> metric, truth = IoU(), np.array([0, 0, 1, 1]).reshape(1, 2, 2, 1)
        >>> metric.update_state(truth, np.array([0.1, 0.9, 0.9, 0.9]).reshape(1, 2, 2, 1))
        >>> round(float(metric.result()), 3)
        0.667
    """

    def _score(self, tp, fp, fn):
        total = tp + fp + fn
        return tp / ops.maximum(total, 1), total > 0
