"""What happens between epochs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..errors import Diverged


class StopWhenNotFinite(keras.callbacks.Callback):
    def __init__(self, steps: int):
        super().__init__()
        self._steps, self._epoch = steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        if not math.isfinite(logs["loss"]):
            raise Diverged(
                f"The loss became {logs['loss']} at step {batch + 1} of {self._steps} in epoch {self._epoch + 1}; "
                "use a smaller --lr or --mixed-precision off."
            )

    def on_epoch_end(self, epoch, logs=None):
        # oneDNN's ReLU makes 0 of NaN, so that the loss of a network that is lost may well be a number.
        if not all(math.isfinite(float(keras.ops.sum(weight))) for weight in self.model.weights):
            raise Diverged(
                f"The weights are no longer finite numbers after epoch {epoch + 1}; use a smaller --lr or "
                "--mixed-precision off."
            )


class Recorder(keras.callbacks.Callback):
    """Gives each epoch's row of the history to `record`."""

    def __init__(self, record: Callable[[dict], None]):
        super().__init__()
        self._record = record

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs  # the dict that the callbacks after this one get
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        names = ["loss", "dice", "iou"]
        row = {"epoch": epoch, "learning_rate": logs["learning_rate"]}
        row |= {key: float(logs[key]) for key in [*names, *(f"val_{name}" for name in names)] if key in logs}
        if "dropout_rate" in logs:
            row["dropout_rate"] = logs["dropout_rate"]
        self._record(row)


class TensorBoardPanels(keras.callbacks.Callback):
    """Pictures of validation images with truth and prediction, after the first, every fifth and the last epoch.

    They are for looking at, and take as long as some steps.

    Args:
        folder: of the events.
        panels: gives the pictures, uint8 (H, W, 3).
    """

    EVERY = 5

    def __init__(self, folder: Path, panels: Callable[[], Sequence[np.ndarray]]):
        super().__init__()
        self._folder, self._panels = folder, panels

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.EVERY and epoch + 1 != self.params["epochs"]:
            return
        with self._writer.as_default():
            for number, picture in enumerate(self._panels()):
                tf.summary.image(f"image, truth, prediction/{number}", picture[None], step=epoch)

    def on_train_end(self, logs=None):
        self._writer.close()
