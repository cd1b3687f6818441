"""Segmentation losses: Keras's own functions, with pixels left out and a mean over images."""

import functools
from collections.abc import Sequence

import keras
from keras import ops

from ..conventions import IGNORED

LOSSES = ("dice_ce", "dice", "focal", "tversky")
# Each for channels that are probabilities by themselves, and for channels that add up to 1.
_CROSSENTROPY = (keras.losses.binary_crossentropy, keras.losses.categorical_crossentropy)
_FOCAL = (
    keras.losses.binary_focal_crossentropy,
    functools.partial(keras.losses.categorical_focal_crossentropy, alpha=1.0),
)


class SegmentationLoss(keras.losses.Loss):
    """One of the losses in `LOSSES`, computed for each image and averaged over the batch.

    `dice_ce` is Dice plus cross-entropy, `focal` weights cross-entropy by (1 - p)^2 (Lin et al. 2017), `tversky`
    is Dice with false negatives weighing 0.7 against 0.3 for false positives (Salehi et al. 2017). Dice and Tversky
    are means over the foreground classes that are present in the image's truth: an absent class has no overlap to
    improve, and in `dice_ce` cross-entropy is what keeps it absent. `dice` and `tversky` alone cost nothing where an
    image has no foreground, whatever is predicted there. Cross-entropy and focal average over valid pixels. With
    `class_weights` these are weighted means, over the pixels by the class of their truth and over the foreground
    classes, so that the loss stays of the same size.

    The truth may be that of two images that were blended into one (Zhang et al. 2018): the loss is then the mean of
    what each costs by itself, weighted by the shares. For cross-entropy that is what blended labels give; Dice of
    blended labels is not least where they are met.

    Args:
        name: one of `LOSSES`.
        class_weights: a positive number for each class, background first; None: all alike. Where classes overlap the
            background's is of the pixels that do not have a class, in that class's part.
        multilabel: classes overlap: cross-entropy and focal are means over pixels and classes, each yes or no.
        label_smoothing: 0 <= share < 1 of a pixel's label that is spread over all classes in cross-entropy and focal
            (Szegedy et al. 2016), where there are two, half of it to each. Dice and Tversky are left alone, and with
            them the loss of a class that is not there.

    Call arguments:
        y_true: (N, H, W, 1) class indices, or sums of the classes' bits (see `segdrop.conventions`); IGNORED (255)
            where not scored. Or (N, H, W, 3): two such maps, and the second one's share in 255ths, of each image.
        y_pred: (N, H, W, C) probabilities in 0..1; C = 1 for a binary model.

    Example:
        >>> truth = np.array([1, 1, 0, 0]).reshape(1, 2, 2, 1)
        >>> undecided = np.full((1, 2, 2, 1), 0.5, "float32")
        >>> round(float(SegmentationLoss("dice")(truth, undecided)), 3)  # Dice 2 * 1 / (2 + 2)
        0.5
        >>> round(float(SegmentationLoss("dice_ce")(truth, undecided)), 3)  # and ln 2
        1.193
    """

    def __init__(
        self,
        name: str = "dice_ce",
        reduction: str = "sum_over_batch_size",
        class_weights: Sequence[float] | None = None,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
    ):
        if name not in LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(LOSSES)}, got {name!r}.")
        super().__init__(name=name, reduction=reduction)
        self.class_weights = class_weights and tuple(class_weights)
        self.multilabel, self.label_smoothing = multilabel, label_smoothing

    def call(self, y_true, y_pred):
        y_true = ops.cast(y_true, "int32")
        if y_true.shape[-1] == 1:
            return self._of(y_true, y_pred)
        share = ops.cast(y_true[:, 0, 0, 2], y_pred.dtype) / 255
        return (1 - share) * self._of(y_true[..., :1], y_pred) + share * self._of(y_true[..., 1:2], y_pred)

    def _of(self, y_true, y_pred):
        """Of each image, by one map of the truth."""
        valid = ops.cast(y_true != IGNORED, y_pred.dtype)
        classes = y_pred.shape[-1]
        if self.multilabel:
            truth = ops.cast(bits(y_true, classes), y_pred.dtype)
        elif classes == 1:
            truth = ops.cast(y_true == 1, y_pred.dtype)
        else:
            truth = ops.one_hot(ops.squeeze(y_true, -1), classes, dtype=y_pred.dtype)  # all zero where ignored
        if self.name == "focal":
            return self._pixelwise(truth, y_pred, valid, _FOCAL)
        overlap = self._overlap(truth, y_pred, valid)
        if self.name == "dice_ce":
            return overlap + self._pixelwise(truth, y_pred, valid, _CROSSENTROPY)
        return overlap

    def _overlap(self, truth, pred, valid):
        if truth.shape[-1] > 1 and not self.multilabel:
            truth, pred = truth[..., 1:], pred[..., 1:]
        truth, pred = truth * valid, pred * valid
        # Keras's `alpha` weighs truth that the prediction misses, whatever its docstring calls it; at 0.5 each,
        # Tversky is Dice.
        alpha, beta = (0.7, 0.3) if self.name == "tversky" else (0.5, 0.5)
        present = ops.cast(ops.any(truth > 0, axis=(1, 2)), pred.dtype)
        if self.class_weights:
            present = present * ops.convert_to_tensor(self.class_weights[1:], pred.dtype)
        loss = keras.losses.tversky(truth, pred, alpha=alpha, beta=beta, axis=(1, 2))
        return ops.sum(loss * present, axis=-1) / _or_one(ops.sum(present, axis=-1))

    def _pixelwise(self, truth, pred, valid, functions):
        binary, categorical = functions
        weights = self.class_weights and ops.convert_to_tensor(self.class_weights, truth.dtype)
        if truth.shape[-1] == 1 or self.multilabel:
            # Of each class by itself.
            loss = binary(truth[..., None], pred[..., None], label_smoothing=self.label_smoothing)
            of_each = ops.ones_like(truth) if weights is None else truth * weights[1:] + (1 - truth) * weights[0]
        else:
            loss = categorical(truth, pred, label_smoothing=self.label_smoothing)[..., None]
            of_each = ops.ones_like(valid) if weights is None else ops.sum(truth * weights, axis=-1, keepdims=True)
        of_each = of_each * valid
        return ops.sum(loss * of_each, axis=(1, 2, 3)) / _or_one(ops.sum(of_each, axis=(1, 2, 3)))

    def get_config(self):
        return {
            "name": self.name,
            "reduction": self.reduction,
            "class_weights": self.class_weights,
            "multilabel": self.multilabel,
            "label_smoothing": self.label_smoothing,
        }


def bits(labels, classes: int):
    """Which classes each pixel has, int32 (N, H, W, classes), 0 or 1, of sums of their bits, int32 (N, H, W, 1)."""
    return ops.mod(ops.floor_divide(labels, ops.convert_to_tensor([1 << i for i in range(classes)], "int32")), 2)


def _or_one(total):
    """What weights add up to, 1 in the place of 0."""
    return ops.where(total > 0, total, ops.ones_like(total))
