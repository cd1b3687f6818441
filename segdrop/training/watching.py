"""What goes wrong in a training without an error: seen from what it computes anyway, and said while it runs."""

import math
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from ..folders.run import add_warning, open_run
from ..scoring.counts import (
    confusion_counts,
    constant_dice,
    dice_from_counts,
    foreground_mean,
    hardly_better,
    to_labels,
)
from .session import Session

STEPS = 100  # that a network of random weights may take to begin
FAR = 0.2  # of Dice, from training to validation
DRIFTED = 0.15  # of Dice, from BatchNorm's batch statistics to its running ones
_BATCHES = 4  # of training crops, to tell the two apart


class Watch(keras.callbacks.Callback):
    """Says what a training does that no one wants, each once: on the terminal, and in the run's config.json.

    Nothing is said of the first epochs: for `window_of` all must have been so. What a run's config.json says already,
    of an interrupted session, is not said again. Put it after what keeps the history.

    Args:
        session: the training.
        tell: is given each sentence when it comes up.
    """

    def __init__(self, session: Session, tell: Callable[[str], object]):
        super().__init__()
        self._session, self._tell = session, tell
        self._said = list(open_run(session.run_dir).warnings)
        self._window = window_of(session.epochs, session.steps)
        self._names = session.samples.dataset.class_names
        self._multilabel = session.samples.dataset.multilabel
        self._unseen = np.zeros(len(self._names), int)  # epochs in a row without a pixel predicted as the class
        self._compared = -math.inf  # the epoch in which training crops were last predicted as in use

    def on_epoch_end(self, epoch, logs=None):
        history = self._session.history
        gap = far_below(history, self._window)
        if gap and epoch - self._compared >= self._window and not self._knows(gap):
            self._compared = epoch
            drift = self._drift(epoch)
            # While the learning rate is high, validation on a few images goes down and comes up again.
            halfway = 2 * (epoch + 1) >= self._session.epochs
            self._say(drift or (gap if halfway else {}))
            self._unseen *= not drift  # which is what the classes are missing for
        self._say(standing_still(history, self._window, self._session.config.lr))
        counts = self._session.validation_counts()
        if counts is not None:
            predicted, true = counts[:, :2].sum(axis=1), counts[:, [0, 2]].sum(axis=1)
            self._unseen = np.where((predicted == 0) & (true > 0), self._unseen + 1, 0)
            self._say(missing_classes(self._unseen, self._names, true / true.sum(), self._window, epoch))

    def _say(self, warnings: Mapping[str, str]) -> None:
        """Tell what has not been told; `warnings`: sentences by what they begin with."""
        for title, told in warnings.items():
            if not self._knows({title: told}):
                warning = f"{title}: {told}"
                self._said.append(warning)
                add_warning(self._session.run_dir, warning)
                self._tell(warning)

    def _knows(self, warnings: Mapping[str, str]) -> bool:
        return all(any(said.startswith(f"{title}: ") for said in self._said) for title in warnings)

    def _drift(self, epoch: int) -> dict[str, str]:
        """The same crops with BatchNorm's running statistics as with those of their batch, if that is much worse."""
        session, counts = self._session, 0
        with session.own_weights():
            for images, truth in session.samples.training(epoch, epoch + 1).take(_BATCHES):
                labels = to_labels(session.predicting.predict_on_batch(images), multilabel=self._multilabel)
                counts = counts + confusion_counts(truth[..., 0], labels, len(self._names), self._multilabel)
        return drifted(
            session.history[-1]["dice"], foreground_mean(dice_from_counts(counts)), session.config.bn_momentum
        )


def window_of(epochs: int, steps: int) -> int:
    """For how many epochs something must have been so: three at least, and as many as have `STEPS` steps, or are a
    quarter of a shorter training.

    Example:
        >>> window_of(epochs=30, steps=8), window_of(epochs=30, steps=50), window_of(epochs=100, steps=8)
        (8, 3, 13)
    """
    return max(3, min(math.ceil(epochs / 4), math.ceil(STEPS / steps)))


def missing_classes(
    unseen: Sequence[int], names: Sequence[str], shares: Sequence[float], window: int, epoch: int
) -> dict[str, str]:
    """The classes that validation shows and the network does not.

    Args:
        unseen: for how many epochs in a row each class was not predicted.
        names: of the classes.
        shares: of the validation pixels that are of each class.
        window: from how many epochs on it is told.
        epoch: counted from 0.
    """
    missing = [index for index, epochs in enumerate(unseen) if epochs >= window]
    foreground = [index for index in range(1, len(names)) if shares[index] > 0]
    up_to = "in the {} epochs up to epoch " + str(epoch + 1)
    if foreground and all(index in missing for index in foreground):
        return {
            "All background": f"{up_to.format(min(unseen[index] for index in foreground))} every pixel of the "
            f"validation images was predicted as {names[0]}, though {1 - shares[0]:.2%} are not; train longer "
            "(--epochs), try another --lr or --loss, and look whether the masks belong to their images."
        }
    return {
        f"Class {names[index]!r} never predicted": f"{up_to.format(unseen[index])} no pixel of the validation images "
        f"was predicted as it, though {shares[index]:.2%} are of it; train longer (--epochs), or with --loss dice, "
        "for which all classes weigh the same."
        for index in missing
    }


def standing_still(history: Sequence[Mapping], window: int, rate: float) -> dict[str, str]:
    """A loss that has not fallen since the first epoch, and a Dice that has not risen."""
    first, later = history[0], history[1:][-window:]
    if len(later) < window:
        return {}
    loss, dice = (float(np.mean([row[name] for row in later])) for name in ("loss", "dice"))
    if not (loss > 0.95 * first["loss"] and dice < min(first["dice"] + 0.02, 0.9)):
        return {}
    return {
        "Loss standing still": f"it was {first['loss']:.3g} in the first epoch and is {loss:.3g} in the {window} up "
        f"to epoch {history[-1]['epoch'] + 1}; try a larger or a smaller --lr than {rate:g}, and look whether the "
        "masks belong to their images."
    }


def far_below(history: Sequence[Mapping], window: int) -> dict[str, str]:
    """Validation Dice far below that of the training crops, in each epoch of the window."""
    rows = history[-window:]
    if len(rows) < window or not all(row["dice"] - row.get("val_dice", math.nan) > FAR for row in rows):
        return {}
    training, validation = (float(np.mean([row[name] for row in rows])) for name in ("dice", "val_dice"))
    return {
        "Validation far below training": f"in the {window} epochs up to epoch {rows[-1]['epoch'] + 1} Dice was "
        f"{validation:.3f} on the validation images and {training:.3f} on the training crops; more images, a stronger "
        "--augment, --encoder-dropout or a larger --crop-size may help."
    }


def nothing_learnt(dice: float | None, counts: np.ndarray | None) -> str | None:
    """What there is to say of a training whose best validation Dice is hardly above that of one class for all pixels.

    Args:
        dice: of the best epoch, None where undefined.
        counts: of any epoch's validation, (classes, 3); None where there are none.
    """
    if dice is None or counts is None or not hardly_better(dice, constant := constant_dice(counts)):
        return None
    return (
        f"Nothing was learnt: the best validation Dice is {dice:.3f}, and one class for all pixels has {constant:.3f}; "
        "train longer (--epochs), try another --lr or --crop-size, and look whether the masks belong to their images."
    )


def drifted(training: float, in_use: float, momentum: float) -> dict[str, str]:
    """BatchNorm's running statistics far from those that the network is trained with.

    Args:
        training: Dice of training crops, normalised by their batch.
        in_use: of the same crops, normalised by the running statistics.
        momentum: of these.
    """
    if not training - in_use > DRIFTED:
        return {}
    return {
        "BatchNorm's statistics drift": f"the same training crops have a Dice of {training:.3f} with the statistics of "
        f"their batch, as in training, and of {in_use:.3f} with the running ones, as in validation and use; give "
        f"--recalibrate-batchnorm, a --bn-momentum below {momentum:g}, or more steps."
    }
