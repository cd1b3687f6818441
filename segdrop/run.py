"""A run's folder: what is in it, written so that no file is ever there in part."""

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .config import TrainConfig
from .errors import InputError

CONFIG, MODEL, HISTORY, METRICS, SPLIT = "config.json", "model.keras", "history.csv", "metrics.json", "split.csv"
PER_IMAGE = "per_image.csv"
SWEEP = "sweep.json"  # of a sweep's folder, whose trainings are runs
STATE = "state.npz"  # everything that a resumed run needs; removed when the run is finished
PACKAGES = ("segdrop", "tensorflow", "keras", "segmentation-models", "albumentations", "opencv-python-headless")


def create_run(path: Path, needed_bytes: int) -> None:
    """Make the folder of a new run.

    Raises:
        FileExistsError: it exists.
        InputError: the disk has less than `needed_bytes` free.
        PermissionError: the place is not writable.
    """
    if path.exists():
        raise FileExistsError(f"`run_dir` exists: {path}; choose another name, or continue that run with --resume.")
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(home, os.W_OK):
        raise PermissionError(f"`run_dir` cannot be made: no permission to write in {home}; choose another place.")
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise InputError(
            f"`run_dir` {path} needs about {needed_bytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free; "
            "free some or choose another place."
        )
    path.mkdir(parents=True)


def is_sweep(folder: str | os.PathLike) -> bool:
    return (Path(folder) / SWEEP).is_file()


def open_run(path: str | os.PathLike) -> dict:
    """The contents of a run's config.json.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: the folder is not a run of segdrop.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"The run does not exist: {path}.")
    if is_sweep(path):
        raise InputError(
            f"{path} is the folder of a sweep; name one of its trainings (chosen.json tells the best arm's), or a run "
            "that `segdrop train --from-sweep` has made of it."
        )
    try:
        record = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "config" not in record:
            raise ValueError("it has no config")
        return record
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a run of segdrop: it has no readable {CONFIG}.") from error


def stored_config(path: str | os.PathLike) -> TrainConfig:
    """The configuration that a run was started with."""
    stored = open_run(path)["config"]
    try:
        return TrainConfig(**stored)
    except TypeError as error:  # a field that this version does not have
        raise InputError(f"{path} was made by another version of segdrop: {error}.") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then put the file into place; leave nothing on failure."""
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix  # writers choose the format by it
    temporary = path.with_name(f".{path.name.removesuffix(ending)}.partial{ending}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what a killed `write_atomically` left."""
    for path in folder.glob(".*.partial*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping | Sequence) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Mapping], columns: Sequence[str] | None = None) -> None:
    """Rows of equal keys, which are the columns unless these are given; floats with all their digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda p: p.write_text(buffer.getvalue(), encoding="utf-8"))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def save_state(path: Path, variables: Sequence, history: Sequence[Mapping]) -> None:
    """Store the values of Keras variables and the history of the epochs that led to them."""
    arrays = {f"v{i}": np.asarray(variable) for i, variable in enumerate(variables)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, history=np.array(json.dumps(list(history))), **arrays)  # pyright: ignore[reportArgumentType]

    write_atomically(path / STATE, write)


def load_history(path: Path) -> list[dict]:
    """The history in the stored state.

    Raises:
        InputError: the run is finished, or was stopped before its first epoch ended.
    """
    if not (path / STATE).is_file():
        if (path / METRICS).is_file():
            raise InputError(f"{path} is a finished run; there is nothing to resume.")
        raise InputError(f"{path} ended before its first epoch did; delete it and start again without --resume.")
    with np.load(path / STATE) as state:
        return json.loads(str(state["history"]))


def restore_state(path: Path, variables: Sequence) -> None:
    """Assign the first `len(variables)` values of the stored state."""
    with np.load(path / STATE) as state:
        for i, variable in enumerate(variables):
            variable.assign(state[f"v{i}"])


def best_epoch(history: Sequence[Mapping]) -> int:
    """The first epoch with the highest validation Dice, an undefined one being the lowest; the last one where there was
    no validation."""
    if "val_dice" not in history[0]:
        return history[-1]["epoch"]
    scores = [-math.inf if math.isnan(row["val_dice"]) else row["val_dice"] for row in history]
    return history[int(np.argmax(scores))]["epoch"]


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu, a vendor's build, a source checkout
            versions[package] = "not installed under this name"
    return versions
