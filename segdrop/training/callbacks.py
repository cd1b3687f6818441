"""What happens between epochs."""

import contextlib
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


class Averages(keras.callbacks.Callback):
    """Puts the averages of an optimizer with `use_ema` in the place of the weights from an epoch's last step to the
    next one's first: for validation, and for all callbacks after this one.

    Keras's SwapEMAWeights exchanges the two by adding and subtracting, from which the weights do not come back to the
    last bit, and knows no variables but those that are trained.
    """

    def __init__(self):
        super().__init__()
        self._own: list[np.ndarray] = []  # what is trained on, while the averages are in its place

    def on_epoch_begin(self, epoch, logs=None):
        self._take_out()

    def on_test_begin(self, logs=None):
        self._put_in()

    def on_epoch_end(self, epoch, logs=None):
        self._put_in()

    def on_train_end(self, logs=None):  # after Keras has put the averages in for good
        self._take_out()

    @contextlib.contextmanager
    def weights(self):
        """The weights that are trained on are in the model meanwhile."""
        there = bool(self._own)
        self._take_out()
        yield
        if there:
            self._put_in()

    def _averaged(self) -> list:
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer).averaged  # with float16 it is within another

    def _put_in(self) -> None:
        if not self._own:
            self._own = [np.array(variable) for variable in self._averaged()]
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    def _take_out(self) -> None:
        if self._own:
            for variable, value in zip(self._averaged(), self._own, strict=True):
                variable.assign(value)
            self._own = []


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
