"""A sweep's folder: what is in it, and what trainings and predictions take from a finished one.

`sweep.json` says what the sweep is, `folds.csv` which image is in which fold, `trainings/N/` is the run's folder of
Optuna's trial N, `chosen.json` names the chosen arm once all trainings are finished, and `answer.md` is the answer.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from ..config.arms import config_of
from ..config.sweep import SweepConfig
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..errors import InputError
from ..files import read_csv, write_csv
from ..locks import locked
from .run import SWEEP

FOLDS, CHOSEN, TEST, TRAININGS = "folds.csv", "chosen.json", "test.json", "trainings"
HELD_OUT = "test"
ANSWER_WAIT = 300.0  # seconds that another process may write the answer


def open_sweep(folder: str | os.PathLike) -> dict:
    """The contents of a sweep's sweep.json.

    Raises:
        FileNotFoundError, InputError: there is no such folder, or it is not a sweep's.
    """
    path = Path(folder) / SWEEP
    if not path.is_file():
        if Path(folder).is_dir():
            raise InputError(f"{folder} is not the folder of a sweep: it has no {SWEEP}.")
        raise FileNotFoundError(f"The sweep does not exist: {folder}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        SweepConfig.from_json(record["config"])
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, or of another version of segdrop: {error}.") from error


def lock_answer(folder: Path) -> AbstractContextManager[None]:
    """What changes a sweep's own files holds this.

    Raises:
        InputError: another process does so for minutes already.
    """
    return locked(folder, "answer", "has its answer written", "try again", wait=ANSWER_WAIT)


def training_dir(folder: str | os.PathLike, number: int) -> Path:
    """The run's folder of a trial."""
    return Path(folder) / TRAININGS / f"{number:05d}"


def write_folds(folder: Path, dataset: Dataset, folds: Sequence[Sequence[np.ndarray]]) -> None:
    """Store the folds: a row for each image, with the number of its fold in each repeat, or "test".

    Args:
        folds: for each repeat the validation images of each fold.
    """
    rows = []
    groups = {group: f"g{i}" for i, group in enumerate(dict.fromkeys(dataset.groups))}  # tells nothing of a patient
    homes = [{int(i): str(number) for number, part in enumerate(parts) for i in part} for parts in folds]
    for index, name in enumerate(dataset.ids):
        row = {"id": name}
        if dataset.grouped:
            row["group"] = groups[dataset.groups[index]]
        rows.append(row | {f"repeat_{i}": home.get(index, HELD_OUT) for i, home in enumerate(homes)})
    write_csv(folder / FOLDS, rows)


def read_folds(folder: Path, dataset: Dataset) -> tuple[list[list[np.ndarray]], np.ndarray, dict[str, str] | None]:
    """What `write_folds` wrote: validation images of each fold of each repeat, test images, and each image's group."""
    rows = read_csv(folder / FOLDS)
    position = {name: i for i, name in enumerate(dataset.ids)}
    missing = [row["id"] for row in rows if row["id"] not in position]
    if missing:
        raise InputError(f"{dataset.path} lacks {len(missing)} image(s) of {folder}; first: {missing[0]}.")
    groups = {row["id"]: row["group"] for row in rows} if "group" in rows[0] else None
    repeats = []
    for column in [name for name in rows[0] if name.startswith("repeat_")]:
        members: dict[str, list[int]] = {}
        for row in rows:
            members.setdefault(row[column], []).append(position[row["id"]])
        held_out = members.pop(HELD_OUT, [])
        repeats.append([np.array(members[number]) for number in sorted(members, key=int)])
    return repeats, np.array(held_out, int), groups


def check_data(record: dict, dataset: Dataset, folder: str | os.PathLike) -> None:
    """Raise InputError unless the data set holds what the sweep was started with, wherever it lies."""
    if dataset.digest != record["data_sha256"]:
        raise InputError(f"{dataset.path} has other images or masks than {folder} was started with.")


def sweep_split(folder: str | os.PathLike, dataset: Dataset) -> dict[str, np.ndarray]:
    """All folds' images to train on, none to validate with, and the sweep's test images."""
    check_data(open_sweep(folder), dataset, folder)
    repeats, test, _ = read_folds(Path(folder), dataset)
    return {"train": np.sort(np.concatenate(repeats[0])), "val": np.empty(0, int), "test": test}


def read_chosen(folder: str | os.PathLike) -> dict:
    """The chosen arm of a finished sweep: its name, its changes, the epochs to train, and its trainings' folders.

    Raises:
        FileNotFoundError, InputError: there is no sweep, or it is not finished.
    """
    open_sweep(folder)
    path = Path(folder) / CHOSEN
    if not path.is_file():
        raise InputError(f"{folder} is not finished, so that no arm is chosen; run its `segdrop sweep` command again.")
    return json.loads(path.read_text(encoding="utf-8"))


def chosen_config(folder: str | os.PathLike, **changes) -> TrainConfig:
    """The configuration that trains a finished sweep's chosen arm on the images of all folds.

    It stops after the folds' median best epoch, on the learning rate's course that the folds had. `segdrop train
    --from-sweep` is `segdrop.train(chosen_config(folder))`.

    Args:
        changes: fields to set otherwise: run_dir, data where it lies elsewhere now, seed, ...

    Raises:
        FileNotFoundError, InputError: there is no sweep, it is not finished, or the changes are impossible.

    Example:
        >>> config = segdrop.chosen_config("sweeps/mine", run_dir="runs/final")
        >>> config.dropout_kind, config.encoder_dropout, config.stop_after
        ('spatial', 0.2, 1)
    """
    chosen = read_chosen(folder)
    train = SweepConfig.from_json(open_sweep(folder)["config"]).train
    config = config_of(train, chosen["changes"])
    fields = {"seed": chosen["seed"], "from_sweep": str(folder), "stop_after": chosen["stop_after"]}
    return dataclasses.replace(config, **{**fields, "train_fraction": 1.0, **changes})


def fold_runs(folder: str | os.PathLike) -> list[Path]:
    """The run's folders of the chosen arm's trainings."""
    return [Path(folder) / TRAININGS / name for name in read_chosen(folder)["trainings"]]
