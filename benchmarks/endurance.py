"""Does anything grow over hours? Memory and open files of long trainings, predictions and sweeps.

    python benchmarks/endurance.py train --minutes 30
    python benchmarks/endurance.py predict --minutes 30
    python benchmarks/endurance.py files --count 100000
    python benchmarks/endurance.py sweep --trainings 1000

Each prints a line now and then, and ends with 1 where memory has grown by more than 2% (after the first fifth of the
time) or files have been left open.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import psutil

import segdrop
from segdrop.cells import draw_cells

LIMIT = 0.02  # of the memory after the first fifth


class Watch:
    """Memory and open files of this process, told every so often."""

    def __init__(self, every: float):
        self._process, self._every, self._told = psutil.Process(), every, 0.0
        self.started, self.rows = time.monotonic(), []

    def look(self, what: str) -> None:
        seconds = time.monotonic() - self.started
        if seconds < self._told:
            return
        self._told = seconds + self._every
        with self._process.oneshot():
            row = seconds, self._process.memory_info().rss / 2**20, self._process.num_fds(), self._process.num_threads()
        self.rows.append(row)
        print(f"{seconds:7.0f} s  {row[1]:7.1f} MiB  {row[2]:4} files  {row[3]:4} threads  {what}", flush=True)

    def verdict(self, allowed: float = 0.0) -> int:
        """1 where something has grown since the first fifth: the medians of the last and the second fifth differ, by
        more than so many MiB besides the limit."""
        rows = np.array(self.rows)
        fifth = len(rows) // 5
        if not fifth:
            print("Too short to tell.")
            return 0
        (_, before, files, _), (_, after, left, _) = (
            np.median(rows[part], axis=0) for part in (slice(fifth, 2 * fifth), slice(-fifth, None))
        )
        growth = after / before - 1
        print(f"Memory {before:.1f} to {after:.1f} MiB ({growth:+.1%}); open files {files:.0f} to {left:.0f}.")
        return int(after - before > LIMIT * before + allowed or left > files)


def train(folder: Path, given) -> int:
    """Epoch after epoch until the time is over."""
    from segdrop.training import session

    watch, original = Watch(given.minutes * 60 / 100), session.Session.record_epoch

    def record_epoch(self, row):
        original(self, row)
        watch.look(f"epoch {row['epoch'] + 1}")
        if time.monotonic() - watch.started > given.minutes * 60:
            self.trained.stop_training = True

    session.Session.record_epoch = record_epoch
    for number in range(24):
        for part, picture in zip(("images", "masks"), draw_cells(np.random.default_rng(number), 64), strict=True):
            write_png(folder / "data" / part / f"{number}.png", picture)
    segdrop.train(
        segdrop.TrainConfig(
            data=str(folder / "data"),
            run_dir=str(folder / "run"),
            encoder="resnet18",
            encoder_weights="none",
            encoder_dropout=0.2,
            crop_size=64,
            batch_size=4,
            steps_per_epoch=8,
            epochs=100_000,
            patience=100_000,
        )
    )
    return watch.verdict()


def bright() -> keras.Model:
    """A network that calls bright pixels foreground, so that what is measured is all around it."""
    inputs = keras.Input((None, None, 3))
    pick = keras.layers.Conv2D(1, 1, activation="sigmoid")
    model = keras.Model(inputs, pick(inputs))
    pick.set_weights([np.ones((1, 1, 3, 1), "float32"), np.array([-384], "float32")])
    return model


def write_png(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"{path} cannot be written.")


def write_images(folder: Path, count: int, sides: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (max(sides), max(sides)), np.uint8)
    for number in range(count):
        side = sides[number % len(sides)]
        write_png(folder / f"{number // 1000:03d}" / f"{number:06d}.png", np.roll(noise, number)[:side, :side])
    return folder


def predict(folder: Path, given) -> int:
    """The same images again and again, of many sizes."""
    images = write_images(folder / "images", 50, (64, 100, 333, 700))
    network, watch, call = segdrop.load(bright()), Watch(given.minutes * 60 / 100), 0
    while time.monotonic() - watch.started < given.minutes * 60:
        call += 1
        with tempfile.TemporaryDirectory(dir=folder) as out:
            segdrop.predict(network, images, out, overlay=True)
        watch.look(f"call {call}")
    return watch.verdict()


def files(folder: Path, given) -> int:
    """Very many tiny files in one call."""
    images = write_images(folder / "images", given.count, (16,))
    from segdrop.inference import writer

    watch, original, done = Watch(5), writer.Writer.process, iter(range(1, given.count + 1))

    def process(self, job, bar):
        row = original(self, job, bar)
        watch.look(f"file {next(done)}")
        return row

    writer.Writer.process = process
    found = segdrop.predict(segdrop.load(bright()), images, folder / "out")
    seconds = time.monotonic() - watch.started
    print(f"{len(found.files)} files, {found.failed} failed, {len(found.files) / seconds:.0f} a second.")
    # A prediction holds a row of its table for each file, of less than 2 KiB.
    return watch.verdict(allowed=given.count / 512) or int(found.failed or len(found.files) != given.count)


def sweep(folder: Path, given) -> int:
    """Trainings that are a number, while the database fails now and then."""
    import optuna
    from optuna.trial import TrialState
    from sqlalchemy.exc import OperationalError

    from segdrop.config.sweep import SweepConfig
    from segdrop.sweeps import storage
    from segdrop.sweeps.trials import Trials

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    rng, failures = random.Random(0), []

    class Locked(Exception):
        __module__ = "sqlite3"

        def __str__(self):
            return "database is locked"

    def sometimes(method):
        def call(self, *arguments, **options):
            if rng.random() < 0.01:
                failures.append(method.__name__)
                raise OperationalError("SELECT 1", {}, Locked())
            return method(self, *arguments, **options)

        return storage._patiently(call)

    for name in ("get_trial", "set_trial_user_attr", "_get_trials"):
        setattr(storage._Storage, name, sometimes(vars(storage.RDBStorage)[name]))
    arms = given.trainings // 10
    config = SweepConfig(
        segdrop.TrainConfig(data="nowhere"),
        grid={
            "encoder_dropout": [round(0.9 * (i + 1) / arms, 6) for i in range(arms - 1)],
            "dropout_kind": ["spatial"],
        },
        folds=10,
    )
    database = storage.open_storage(storage.file_url(folder))
    trials = Trials(optuna.create_study(study_name="endurance", storage=database, direction="maximize"), config)
    trials.enqueue(trials.missing([]))
    watch, waiting = Watch(2), len(trials.all())
    print(f"{waiting} trainings")
    while waiting:
        trials.run_one(lambda job, number: (0.5, {"scores": {}}), ())
        waiting -= 1
        watch.look(f"{waiting} left, {len(failures)} failures of the database")
    states = [trial.state for trial in trials.all()]
    whole = states.count(TrialState.COMPLETE) == len(states) and not trials.missing(trials.all())
    print(f"{states.count(TrialState.COMPLETE)} of {len(states)} complete, {len(failures)} failures of the database.")
    return watch.verdict() or int(not whole)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "predict", "files", "sweep"])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--trainings", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segdrop-endurance-") as home:
        sys.exit(globals()[given.what](Path(home), given))
