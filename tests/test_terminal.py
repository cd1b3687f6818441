"""What a training tells in the terminal: a line for each epoch, how long it will take, and nothing else in a file."""

import dataclasses
import io
import math

import pytest
from conftest import tiny_training
from rich.console import Console
from rich.progress import Progress

from segdrop import train
from segdrop.training.session import Session
from segdrop.training.terminal import EpochLines, epoch_line, epoch_lines

ROW = {"epoch": 2, "loss": 0.53217, "dice": 0.6124, "val_dice": 0.58}


@pytest.mark.parametrize(
    ("row", "epochs", "left", "best", "line"),
    [
        (ROW, 30, "4 min left", True, "Epoch  3 of 30  loss 0.5322   Dice 0.612  val Dice 0.580    4 min left  best"),
        (ROW, 30, "4 min left", False, "Epoch  3 of 30  loss 0.5322   Dice 0.612  val Dice 0.580    4 min left"),
        (ROW, 3, "", True, "Epoch 3 of 3  loss 0.5322   Dice 0.612  val Dice 0.580                best"),
        (
            {"epoch": 998, "loss": 1.2345e-05, "dice": 1.0, "val_dice": 1.0},
            999,
            "99.9 h left",
            True,
            "Epoch 999 of 999  loss 1.234e-05  Dice 1.000  val Dice 1.000   99.9 h left  best",
        ),
        (ROW | {"val_dice": math.nan}, 3, "", False, "Epoch 3 of 3  loss 0.5322   Dice 0.612  val Dice   –"),
        # Without validation there is nothing to tell the best by.
        (
            {"epoch": 0, "loss": 600.3, "dice": 0.1},
            3,
            "9 s left",
            True,
            "Epoch 1 of 3  loss 600.3    Dice 0.100      9 s left",
        ),
    ],
)
def test_a_line_of_an_epoch_has_at_most_80_columns(row, epochs, left, best, line):
    assert epoch_line(row, epochs, left, best) == line
    assert len(line) <= 80


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self):
        return self.now


def watched(history, epochs, steps, terminal):
    """The lines of a training that a test drives, its clock, and what is written."""
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, highlight=False, soft_wrap=True)
    progress = Progress(*Progress.get_default_columns(), console=console, disable=not terminal)
    return EpochLines(progress, history, epochs, steps, clock), clock, file


def drive(lines, clock, history, epoch, seconds, validation):
    """An epoch of steps that take so long, and of a validation."""
    lines.on_epoch_begin(epoch)
    for step, passed in enumerate(seconds):
        clock.now += passed
        lines.on_train_batch_end(step, {"loss": 0.5})
    clock.now += validation
    history.append(ROW | {"epoch": epoch, "val_dice": epoch / 10})
    lines.on_epoch_end(epoch)


def test_the_time_left_is_that_of_the_whole_training_at_the_pace_since_the_first_step():
    """The first step, with its tracing, takes 50 s; 3 steps later 3 x 2 + 1 s have passed; 8 steps are to come."""
    history = []
    lines, clock, file = watched(history, 3, 4, terminal=False)
    drive(lines, clock, history, 0, [50, 2, 2, 2], 1)
    drive(lines, clock, history, 1, [2, 2, 2, 2], 1)  # 7 steps in 16 s; 4 to come
    drive(lines, clock, history, 2, [2, 2, 2, 2], 1)
    first, second, third = file.getvalue().splitlines()
    assert f"{7 / 3 * 8:.0f} s left" in first and f"{16 / 7 * 4:.0f} s left" in second and "left" not in third


def test_a_single_step_tells_the_time_of_the_others_too():
    history = []
    lines, clock, file = watched(history, 3, 1, terminal=False)
    drive(lines, clock, history, 0, [10], 5)
    assert "30 s left" in file.getvalue()


def test_a_resumed_training_counts_the_epochs_that_are_left():
    history = [ROW | {"epoch": epoch, "val_dice": 0.15} for epoch in range(8)]
    lines, clock, file = watched(history, 10, 2, terminal=False)
    drive(lines, clock, history, 8, [5, 1], 1)
    assert file.getvalue() == "Epoch  9 of 10  loss 0.5322   Dice 0.612  val Dice 0.800      4 s left  best\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_bar_within_the_epoch_and_a_file_has_none(terminal):
    lines, _, file = watched([], 2, 2, terminal)
    with lines._progress:
        lines.on_epoch_begin(0)
        lines.on_train_batch_end(0, {"loss": 0.5})
        lines._progress.refresh()
    assert ("Epoch 1 of 2" in file.getvalue()) is terminal
    assert ("\x1b" in file.getvalue()) is terminal


def test_a_training_writes_one_line_for_each_epoch_and_its_resumption_the_rest(
    cells, tmp_path, monkeypatch, capsys, small_unet
):
    original = Session.record_epoch

    def stop_after_the_second(session, row):
        original(session, row)
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    config = tiny_training(cells, run_dir=str(tmp_path / "run"), epochs=4, freeze_epochs=1, batch_size=2)
    monkeypatch.setattr(Session, "record_epoch", stop_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    first = capsys.readouterr().out
    monkeypatch.setattr(Session, "record_epoch", original)
    result = train(dataclasses.replace(config, resume=True))
    out = capsys.readouterr().out
    lines = [line for line in (first + out).splitlines() if line.startswith("Epoch ")]
    assert [line[:14] for line in lines] == [f"Epoch {i} of 4  " for i in (1, 3, 4)]  # the second's was cut off
    assert f"val Dice {result.history[2]['val_dice']:.3f}" in lines[1]
    assert "\x1b" not in first + out and "\r" not in first + out and "━" not in first + out
    assert "(resumed)" in out


def test_an_interrupt_leaves_the_terminal_as_it_was(monkeypatch):
    """The bar's thread has ended, and the cursor is shown again."""
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), epoch_lines([], 2, 2) as lines:
        lines.on_epoch_begin(0)
        raise KeyboardInterrupt
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")
    assert not lines._progress.live.is_started
