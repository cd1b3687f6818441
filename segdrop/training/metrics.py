"""Dice and IoU as Keras metrics."""

import keras
from keras import ops

from ..conventions import IGNORED
from .losses import bits


class _Overlap(keras.metrics.Metric):
    """Confusion counts over an epoch; see `Dice` and `IoU`."""

    def __init__(self, classes: int = 2, threshold: float = 0.5, name: str | None = None, multilabel: bool = False):
        super().__init__(name=name)
        self.classes, self.threshold, self.multilabel = classes, threshold, multilabel
        # Whole numbers: float32 would stop counting at 2^24 pixels. JAX has those of 64 bits only where it is told to.
        dtype = "int32" if keras.backend.backend() == "jax" else "int64"
        self.counts = self.add_variable((3, classes), initializer="zeros", dtype=dtype, name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.cast(y_true[..., :1], "int32")  # of a blend the first image's, which is the larger part of it
        valid = ops.squeeze(y_true != IGNORED, -1)
        counts = []
        for t, p in zip(self._shown(y_true), self._predicted(y_pred), strict=True):
            t, p = ops.logical_and(t, valid), ops.logical_and(p, valid)
            both = ops.count_nonzero(ops.logical_and(t, p))
            counts.append((both, ops.count_nonzero(p) - both, ops.count_nonzero(t) - both))
        table = ops.stack([ops.stack(column) for column in zip(*counts, strict=True)])
        self.counts.assign_add(ops.cast(table, self.counts.dtype))

    def _shown(self, y_true) -> list:
        """Where the truth shows each class, bool (N, H, W)."""
        if not self.multilabel:
            return [y_true[..., 0] == index for index in range(self.classes)]
        shown = bits(y_true, self.classes - 1)
        return [y_true[..., 0] == 0, *(shown[..., index] == 1 for index in range(self.classes - 1))]

    def _predicted(self, y_pred) -> list:
        """Where each class is predicted, bool (N, H, W)."""
        if y_pred.shape[-1] > 1 and not self.multilabel:
            pred = ops.argmax(y_pred, axis=-1)
            return [pred == index for index in range(self.classes)]
        reached = y_pred >= self.threshold
        return [ops.logical_not(ops.any(reached, axis=-1)), *(reached[..., i] for i in range(y_pred.shape[-1]))]

    def result(self):
        tp, fp, fn = (ops.cast(self.counts[row], "float32") for row in range(3))
        score, defined = self._score(tp, fp, fn)
        defined = ops.cast(defined, "float32")[1:]
        return ops.sum(score[1:] * defined) / ops.sum(defined)

    def get_config(self):
        return {
            "name": self.name,
            "classes": self.classes,
            "threshold": self.threshold,
            "multilabel": self.multilabel,
        }


class Dice(_Overlap):
    """Mean over the foreground classes of the micro Dice; NaN where no class is defined.

    Args:
        classes: number of classes counting the background, at least 2.
        threshold: for models with one output channel, and for those of overlapping classes.
        multilabel: classes overlap.

    Call arguments:
        y_true: (N, H, W, 1) class indices, or sums of the classes' bits; IGNORED (255) where not scored. Of a blend's
            (see `SegmentationLoss`) the first.
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
