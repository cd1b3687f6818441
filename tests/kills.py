"""Kills commands at random moments of their lives, lets them go on, and compares the end with an unkilled one's.

    python -m tests.kills --seed 3 --count 60 --out kills.csv

Commands run in processes of their own, on a tiny data set and a small network, on the CPU. It exits with 1 where
anything differs, is left over, or is there in part.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import h5py
import numpy as np
from conftest import brightness_model, read_csv, write_pairs, write_run
from postgresql import server

from segdrop.cells import draw_cells
from segdrop.files import write_csv

# Every process of a command builds the small network, and takes a worker for dead after seconds.
SITE = """
import importlib.util, sys

def building(module):
    from standin import build_small_unet
    module.build_unet = build_small_unet

def storage(module):
    module.HEARTBEAT, module.GRACE, module._LONGEST_WAIT = 1, 4, 1

CHANGES = {"segdrop.training.building": building, "segdrop.sweeps.storage": storage}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        change, run = CHANGES.pop(name), spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec

sys.meta_path.insert(0, Finder())
"""
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
ENDS = {"KILL": {-9}, "TERM": {-15, 143}, "INT": {-2, 130}}  # before Python has begun to listen, and after
TIMES = re.compile(r"seconds|time|device|hours|trainings|images_per_second")


@dataclasses.dataclass
class Case:
    """A command that is killed.

    Attributes:
        words: the command, which works in `folder`.
        goes_on: the command that goes on, given the folder and the words; None where it is finished.
        told: what its end consists of, by name, to be compared.
        prepare: fills the folder beforehand.
        partial: names in `told` that may be there before the end, which they must be equal to then.
    """

    words: Callable[[Path], list]
    goes_on: Callable[[Path, list], list | None]
    told: Callable[[Path], dict]
    prepare: Callable[[Path], object] = lambda folder: None
    partial: str = "."


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if not TIMES.search(key)}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def rows_of(path):
    return [without_times(row) for row in read_csv(path)]


def weights_of(path):
    """Every array in a model's file."""
    found = {}
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stored, h5py.File(stored, "r") as file:
        file.visititems(
            lambda name, part: found.update({name: part[()].tobytes()}) if isinstance(part, h5py.Dataset) else None
        )
    return found


def run_of(folder):
    run = folder / "run"
    found = {name: (run / name).read_text() for name in ("history.csv", "split.csv") if (run / name).is_file()}
    if (run / "metrics.json").is_file():
        found["metrics.json"] = without_times(json.loads((run / "metrics.json").read_text()))
        found["per_image.csv"] = rows_of(run / "per_image.csv")
        found["model.keras"] = weights_of(run / "model.keras")
    return found


def train_again(folder, words):
    run = folder / "run"
    if not (run / "config.json").is_file():
        return words
    if (run / "metrics.json").is_file() and not (run / "state.npz").is_file():
        return None
    return ["train", "--resume", "--run-dir", run]


def sweep_of(folder):
    sweep = folder / "sweep"
    if not (sweep / "chosen.json").is_file():
        return {}
    chosen = json.loads((sweep / "chosen.json").read_text())
    models = {f"model {i}": weights_of(sweep / "trainings" / run / "model.keras")
              for i, run in enumerate(chosen["trainings"])}  # fmt: skip
    if (sweep / "answer.csv").is_file():
        models["answer.csv"] = rows_of(sweep / "answer.csv")
    return {**models, "chosen.json": without_times(chosen), "folds.csv": (sweep / "folds.csv").read_text()}


def files_of(name):
    """The content of every file of a folder, those in part not counted; of a file itself."""

    def told(folder):
        home = folder / name
        paths = [home] if home.is_file() else [p for p in home.rglob("*") if p.is_file() and not p.name.startswith(".")]
        return {str(path.relative_to(folder)): without_place(path.read_bytes(), folder) for path in paths}

    return told


def without_place(content, folder):
    """A file's bytes without the folder's name and the minute."""
    return re.sub(rb"20\d\d-\d\d-\d\d \d\d:\d\d", b"", content.replace(bytes(folder), b""))


def names_of(name):
    """Which files a folder has."""
    return lambda folder: {path: b"" for path in files_of(name)(folder)}


def again(folder, words):
    return words


def predict_again(folder, words):
    return [*words, "--resume"] if (folder / "out" / "predict.json").is_file() else words


def make_cases(home, databases):
    """All cases by name; `databases` makes the address of a new one."""
    data = home / "data"
    write_pairs(data, {f"cell_{i}": draw_cells(np.random.default_rng(i), 64) for i in range(12)})
    write_run(home / "bright", brightness_model())
    tiny = ["--encoder", "resnet18", "--encoder-weights", "none", "--mixed-precision", "off", "--crop-size", 32]
    tiny += ["--batch-size", 2, "--augment", "medical", "--scale", 1.0, "--steps-per-epoch", 4, "--data", data]
    options = ["--encoder-dropout", 0.3, "--spatial", "--recalibrate-batchnorm", "--freeze-epochs", 1, "--ema", 0.9]
    sweeping = ["--epochs", 2, "--folds", 2, "--rates", 0.2, "--kinds", "spatial", *tiny]

    def copied(folder):
        shutil.copytree(home / "trained" / "run", folder / "run")

    def sweep_words(*more):
        return lambda folder: ["sweep", folder / "sweep", *sweeping, *more]

    cases = {
        "train": Case(
            lambda folder: ["train", "--run-dir", folder / "run", "--epochs", 6, *options, *tiny],
            train_again,
            run_of,
            partial=r"metrics|model|per_image|split",
        ),
        "predict": Case(
            lambda folder: ["predict", home / "bright", data / "images", "--out", folder / "out", "--overlay"],
            predict_again,
            files_of("out"),
            partial=r"png$|predictions",
        ),
        "sweep": Case(sweep_words("--workers", 2), again, sweep_of, partial=r"model|folds"),
        "evaluate": Case(
            lambda folder: ["evaluate", folder / "run", "--split", "val"], again, run_of, copied, r"split|history|model"
        ),
        "report": Case(lambda folder: ["report", folder / "run"], again, files_of("run/report.html"), copied),
        "export": Case(
            lambda folder: ["export", folder / "run", "--format", "saved_model", "--out", folder / "saved"],
            lambda folder, words: None if (folder / "saved").exists() else words,
            names_of("saved"),
            copied,
        ),
    }  # fmt: skip
    if databases:
        addresses = {}

        def with_database(folder):
            url = addresses.setdefault(folder, None) or addresses.update({folder: databases()}) or addresses[folder]
            return sweep_words("--workers", 2, "--storage", url)(folder)

        cases["sweep in PostgreSQL"] = Case(with_database, again, sweep_of, partial=r"model|folds")
    return cases


def start(words, environment):
    """The command in a process that heeds Ctrl-C, also where a shell's background jobs ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", "segdrop.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(words, environment):
    """Run to the end; its seconds."""
    started = time.monotonic()
    process = start(words, environment)
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))} failed with {process.returncode}: {errors}")
    return time.monotonic() - started


def kill(words, environment, name, moment):
    """Run, and send the signal after `moment` seconds; the exit code, the seconds to its end, and what is wrong."""
    process = start(words, environment)
    try:
        _, errors = process.communicate(timeout=moment)
        return process.returncode, 0.0, "" if process.returncode == 0 else f"it failed: {errors[-300:]}"
    except subprocess.TimeoutExpired:
        process.send_signal(SIGNALS[name])
    sent = time.monotonic()
    try:
        _, errors = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return process.returncode, 30.0, "it had not ended after 30 seconds"
    wrong = ""
    if process.returncode not in ENDS[name] | {0}:
        wrong = f"exit code {process.returncode}: {errors[-300:]}"
    elif process.returncode in (130, 143) and len(errors.strip().splitlines()) != 1:
        wrong = f"more than a line: {errors[-300:]}"
    return process.returncode, time.monotonic() - sent, wrong


def differences(found, expected, names="."):
    """Where two ends differ; only in the `names` that are there where that is a pattern."""
    if names == ".":
        missing = sorted(set(expected) ^ set(found))
        return [f"{name} is missing or new" for name in missing] or [
            f"{name} differs" for name in expected if found[name] != expected[name]
        ]
    return [
        f"{name} is there and not as in the end"
        for name, content in found.items()
        if re.search(names, name) and content != expected.get(name)
    ]


def litter(folder):
    """Hidden files, which a finished command leaves none of."""
    return [f"{path.relative_to(folder)} is left" for path in folder.rglob(".*") if path.is_file()]


def strike(case, whole, environment, folder, name, moment):
    """Kill a case once and let it go on; a row of the table."""
    case.prepare(folder)
    words = case.words(folder)
    code, seconds, wrong = kill(words, environment, name, moment)
    there = case.told(folder)
    problems = [wrong] if wrong else []
    if case.partial != ".":
        problems += differences(there, whole, case.partial)
    following = case.goes_on(folder, words)
    if following is not None:
        try:
            finish(following, environment)
        except RuntimeError as error:
            problems.append(str(error)[:400])
    problems += differences(case.told(folder), whole) + litter(folder)
    return {"exit": code, "ended_after": f"{seconds:.1f}", "there": len(there), "problems": "; ".join(problems)}


def run(seed, count, only=(), databases=None):
    """Yields a row for each kill."""
    rng = random.Random(seed)
    home = Path(tempfile.mkdtemp(prefix="segdrop-kills-"))
    try:
        site = home / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        path = os.pathsep.join(map(str, (site, HERE, HERE.parent)))
        environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "SEGDROP_CACHE": "off"}
        cases = make_cases(home, databases)
        (home / "trained").mkdir()
        finish(cases["train"].words(home / "trained"), environment)
        chosen = {name: case for name, case in cases.items() if not only or name in only}
        wholes = {}
        for name, case in chosen.items():
            folder = home / "whole" / name.replace(" ", "-")
            folder.mkdir(parents=True)
            case.prepare(folder)
            lasted = finish(case.words(folder), environment)
            wholes[name] = case.told(folder), lasted
        for number, name in zip(range(count), itertools.cycle(chosen)):
            told, lasted = wholes[name]
            # Most of a short command's life is the import of TensorFlow; half of the kills are for what comes after.
            moment = lasted * (rng.uniform(0, 1.05) if rng.random() < 0.5 else rng.uniform(0.5, 1.05))
            which = rng.choice(list(SIGNALS))
            folder = home / f"kill-{number}"
            folder.mkdir()
            row = {"number": number, "command": name, "signal": which, "after": f"{moment:.2f}", "of": f"{lasted:.2f}"}
            yield row | strike(chosen[name], told, environment, folder, which, moment)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(home)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--postgresql", action="store_true", help="sweep in a PostgreSQL database, too")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []

    def strike_all(databases=None):
        for row in run(given.seed, given.count, given.only, databases):
            rows.append(row)
            print("  ".join(f"{row[key]!s:>8}" for key in row if key != "problems"), row["problems"], flush=True)

    if given.postgresql:
        with server() as running:
            numbers = itertools.count()
            strike_all(lambda: running.create(f"kills{next(numbers)}"))
    else:
        strike_all()
    if given.out:
        write_csv(given.out, rows)
    wrong = sum(bool(row["problems"]) for row in rows)
    print(f"{len(rows)} kills, {wrong} with a difference.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
