"""What a training tells in the terminal: a line for each epoch, and between them how far it is."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..folders.state import best_epoch
from ..show.console import Console
from ..show.times import in_words


class EpochLines(keras.callbacks.Callback):
    """Prints a line of at most 80 columns when an epoch has ended, and moves a bar within it.

    Args:
        progress: the bar, which is disabled where the output is no terminal.
        history: the rows of all finished epochs, this one's too when it ends.
        epochs: of the whole training, those of an earlier session counted.
        steps: of an epoch.
        clock: seconds that pass.
    """

    def __init__(
        self,
        progress: Progress,
        history: Sequence[Mapping],
        epochs: int,
        steps: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self._progress, self._history, self._epochs, self._steps, self._clock = progress, history, epochs, steps, clock
        self._bar = progress.add_task("", total=steps, told="", visible=False)
        self._started, self._done = clock(), 0
        self._traced = self._started  # the end of the first step, which takes long

    def on_epoch_begin(self, epoch, logs=None):
        about = f"Epoch {epoch + 1} of {self._epochs}"
        self._progress.reset(self._bar, total=self._steps, description=about, told="", visible=True)

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._done == 1:
            self._traced = self._clock()
        ahead = (self._epochs - len(self._history)) * self._steps - batch - 1
        loss = f"loss {(logs or {}).get('loss', math.nan):.4g}"
        self._progress.update(self._bar, advance=1, told=f"{loss}  {self._left(ahead)}")

    def on_epoch_end(self, epoch, logs=None):
        left = self._left((self._epochs - epoch - 1) * self._steps)
        best = best_epoch(self._history) == epoch
        self._progress.console.print(epoch_line(self._history[-1], self._epochs, left, best))

    def _left(self, steps: int) -> str:
        """How long the steps that are left take at the pace so far, validation included."""
        if not steps:
            return ""
        since, done = (self._traced, self._done - 1) if self._done > 1 else (self._started, self._done)
        return f"{in_words((self._clock() - since) / done * steps)} left"


def epoch_line(row: Mapping, epochs: int, left: str, best: bool) -> str:
    """An epoch in at most 80 columns.

    Args:
        row: of the history.
        epochs: of the whole training.
        left: how long that will still take, in words.
        best: whether it is the best epoch so far, which is said where there is validation to tell it.

    Example:
        >>> row = {"epoch": 2, "loss": 0.53217, "dice": 0.6124, "val_dice": 0.58}
        >>> epoch_line(row, 30, "4 min left", best=True)
        'Epoch  3 of 30  loss 0.5322   Dice 0.612  val Dice 0.580    4 min left  best'
    """
    parts = [
        f"Epoch {row['epoch'] + 1:{len(str(epochs))}} of {epochs}",
        f"loss {row['loss']:<7.4g}",
        f"Dice {_in_words(row['dice'])}",
    ]
    if "val_dice" in row:
        parts.append(f"val Dice {_in_words(row['val_dice'])}")
    marked = best and "val_dice" in row
    return "  ".join([*parts, f"{left:>12}", "best" if marked else ""]).rstrip()


def _in_words(score: float) -> str:
    return "  –  " if math.isnan(score) else f"{score:.3f}"


@contextlib.contextmanager
def epoch_lines(history: Sequence[Mapping], epochs: int, steps: int) -> Iterator[EpochLines]:
    """The lines of a training for the time that it runs; arguments as in `EpochLines`."""
    console = Console(soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield EpochLines(progress, history, epochs, steps)
