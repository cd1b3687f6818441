"""What a sweep costs beside its trainings, what parallel trainings gain, and how soon a large sweep's report is there.

    python benchmarks/sweep.py overhead [--data data/cells]
    python benchmarks/sweep.py parallel [--data data/cells]
    python benchmarks/sweep.py report

overhead: one sweep in this process; the share of its time that is not spent in training (`train_fold`): opening and
checking everything, the database, the answer. parallel: the same sweep by one worker with all cores and by several
that share them, in turn; trainings per hour, the start of the processes included. report: a sweep of 1,000 finished
trainings of 100 images, made up; the time of `segdrop sweep --report` in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import optuna

from segdrop import SweepConfig, TrainConfig, sweep
from segdrop.files import write_csv
from segdrop.folders.sweep import TRAININGS
from segdrop.sweeps.state import open_or_start
from segdrop.sweeps.storage import file_url, open_storage
from segdrop.sweeps.trials import Trials
from segdrop.training import folds


def overhead(data: str, folder: Path, epochs: int) -> None:
    inside, train_fold = [], folds.train_fold

    def timed(*arguments):
        started = time.monotonic()
        scores = train_fold(*arguments)
        inside.append(time.monotonic() - started)
        return scores

    folds.train_fold = timed
    train = TrainConfig(data=data, epochs=epochs, patience=epochs, encoder_weights="none")
    started = time.monotonic()
    sweep(folder / "sweep", SweepConfig(train, {"encoder_dropout": [0.2], "dropout_kind": ["spatial"]}, folds=3))
    total = time.monotonic() - started
    print(
        f"{len(inside)} trainings, median {statistics.median(inside):.1f} s: {sum(inside):.1f} s of {total:.1f} s; "
        f"overhead {100 * (total / sum(inside) - 1):.1f}%"
    )


def parallel(data: str, folder: Path, epochs: int, rounds: int = 2) -> None:
    cores = len(os.sched_getaffinity(0))
    train = TrainConfig(data=data, epochs=epochs, patience=epochs, encoder_weights="none")
    config = SweepConfig(train, {"encoder_dropout": [0.2], "dropout_kind": ["spatial"]}, folds=2)
    for repeat in range(rounds):
        for workers in (1, *sorted({max(1, cores // 2), cores} - {1})):
            # A process of its own for one worker too, so that all start alike.
            place = folder / f"{repeat}_{workers}"
            stored = json.dumps(config.to_json())
            code = (
                "import json, sys; from segdrop import SweepConfig, sweep; "
                "sweep(sys.argv[1], SweepConfig.from_json(json.loads(sys.argv[2])), workers=int(sys.argv[3]))"
            )
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", code, str(place), stored, str(workers)], check=True)
            seconds = time.monotonic() - started
            print(f"{workers} worker(s) on {cores} cores: {4 * 3600 / seconds:.1f} trainings per hour", flush=True)


def report(data: str, folder: Path, epochs: int) -> None:
    grid = {"encoder_dropout": [round(0.02 * i, 2) for i in range(1, 20)], "dropout_kind": ["spatial"]}
    train = TrainConfig(data=data, encoder="resnet18", encoder_weights="none")
    config = SweepConfig(train, grid, folds=5, repeats=5, seeds=(0, 1), hold_out=False)
    place = folder / "large"
    with mock.patch.object(Trials, "enqueue"):  # the trials are written as finished ones
        state = open_or_start(place, config, None)
    study = optuna.load_study(study_name=state.record.study, storage=open_storage(file_url(place)))
    rng = np.random.default_rng(0)
    jobs = state.trials.missing([])
    for number, job in enumerate(jobs):
        dice = float(rng.normal(0.8, 0.02))
        scores = dict.fromkeys(("iou", "train_dice", "ece", "ece_foreground", "brier"), dice) | {
            "dice": dice, "best_epoch": 9, "epochs": 30, "train_images": 80, "val_images": 20, "device": "made up",
        }  # fmt: skip
        attributes = {**job.attributes(), "scores": scores, "seconds": 60.0, "worker": "made up"}
        study.add_trial(optuna.create_trial(value=dice, user_attrs=attributes))
        run = place / TRAININGS / f"{number:05d}"
        run.mkdir(parents=True)
        rows = [{"split": "val", "id": f"image_{i}", "dice": float(rng.normal(dice, 0.1))} for i in range(100)]
        write_csv(run / "per_image.csv", rows)
    times = []
    for _ in range(5):
        started = time.monotonic()
        command = [sys.executable, "-m", "segdrop.cli", "sweep", str(place), "--report"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - started)
    print(f"report of {len(jobs)} trainings: median {statistics.median(times):.2f} s of {len(times)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "parallel", "report"))
    parser.add_argument("--data", default="data/cells")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        {"overhead": overhead, "parallel": parallel, "report": report}[options.what](
            options.data, Path(name), options.epochs
        )
