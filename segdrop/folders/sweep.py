"""A sweep's folder: what is in it, and what trainings and predictions take from a finished one.

`sweep.json` says what the sweep is, `folds.csv` which image is in which fold, `trainings/N/` is the run's folder of
Optuna's trial N, `chosen.json` names the chosen arm once all trainings are finished, and `answer.md` is the answer.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import StringConstraints

from ..config.arms import arms_of, config_of
from ..config.sweep import SweepConfig
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..errors import InputError
from ..files import write_csv
from ..locks import locked
from ..typed import SCHEMA, read_json, read_table
from .records import Chosen, HeldOutScores, Plan
from .run import SWEEP

FOLDS, CHOSEN, TEST, TRAININGS = "folds.csv", "chosen.json", "test.json", "trainings"
HELD_OUT = "test"
ADVICE = "restore it from a copy, or start the sweep anew in another folder"  # where a file is damaged
ANSWER_WAIT = 300.0  # seconds that another process may write the answer
_FOLD = Annotated[str, StringConstraints(pattern=f"^({HELD_OUT}|[0-9]{{1,4}})$")]


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep's sweep.json says: what was asked for, and what all its trainings have in common.

    Attributes:
        segdrop: the version that started it.
        config: the configuration, in which nothing is left to the plan.
        study: name of Optuna's study.
        storage: where that is, without a password.
        data_sha256, grouping_sha256: of the images and masks, and of their groups, splits and strata.
        images, groups: their number in the folds; None where there are no groups.
        class_names: of class 0, 1, ...
        mixed_precision: off, float16 or bfloat16, on all machines.
        plan: what was chosen from the data.
        random_weights: whether the encoders start from random weights because there were no others.
        single_tests: whether that version compared each arm by itself.
    """

    segdrop: str
    config: SweepConfig
    study: str
    storage: str
    data_sha256: str
    grouping_sha256: str
    images: int
    groups: int | None
    class_names: tuple[str, ...]
    mixed_precision: Literal["off", "float16", "bfloat16"]
    random_weights: bool
    plan: Plan | None = None
    single_tests: bool = False

    def to_json(self) -> dict:
        """A JSON-ready dict, from which `open_sweep` makes an equal record."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def open_sweep(folder: str | os.PathLike) -> SweepRecord:
    """What a sweep's sweep.json says.

    Raises:
        FileNotFoundError, InputError: there is no such folder, or it is not a sweep's.
    """
    path = Path(folder) / SWEEP
    if not path.exists():
        if Path(folder).is_dir():
            raise InputError(f"{folder} is not the folder of a sweep: it has no {SWEEP}.")
        raise FileNotFoundError(f"The sweep does not exist: {folder}.")
    record = read_json(path, SweepRecord, ADVICE, _upgraded)
    try:
        arms_of(record.config)
    except InputError as error:
        raise InputError(f"{path} does not fit: {str(error).rstrip('.')}; {ADVICE}.") from error
    return record


def _upgraded(stored: dict) -> dict:
    config = stored["config"]
    return {"single_tests": "margin" not in config, **stored, "config": SweepConfig.upgraded(config)}


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


def read_fold_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of folds.csv: id, group where there are groups, and repeat_0, repeat_1, ...: a fold's number or test."""
    rows = read_table(folder / FOLDS, {"id": str, "repeat_0": _FOLD}, ADVICE, _FOLD, unique="id")
    if not rows:
        raise InputError(f"{folder / FOLDS} is damaged: it has no images; {ADVICE}.")
    return rows


def groups_in(rows: Sequence[Mapping[str, str]]) -> dict[str, str] | None:
    """Each image's group, of rows of folds.csv; None where there are no groups."""
    return {row["id"]: row["group"] for row in rows} if "group" in rows[0] else None


def read_folds(folder: Path, dataset: Dataset) -> tuple[list[list[np.ndarray]], np.ndarray, dict[str, str] | None]:
    """What `write_folds` wrote: validation images of each fold of each repeat, test images, and each image's group."""
    rows = read_fold_rows(folder)
    position = {name: i for i, name in enumerate(dataset.ids)}
    missing = [row["id"] for row in rows if row["id"] not in position]
    if missing:
        told = f"{len(missing)} image(s) that {folder / FOLDS} names; first: {missing[0]}"
        raise InputError(f"{dataset.path} lacks {told}.")
    repeats = []
    count = open_sweep(folder).config.folds
    for column in [name for name in rows[0] if re.fullmatch(r"repeat_\d+", name)]:
        members: dict[str, list[int]] = {}
        for row in rows:
            members.setdefault(row[column], []).append(position[row["id"]])
        held_out = members.pop(HELD_OUT, [])
        if sorted(members) != sorted(map(str, range(count))):
            raise InputError(f"{folder / FOLDS} is damaged: `{column}` has not each of {count} folds; {ADVICE}.")
        repeats.append([np.array(members[str(number)]) for number in range(count)])
    return repeats, np.array(held_out, int), groups_in(rows)


def check_data(record: SweepRecord, dataset: Dataset, folder: str | os.PathLike) -> None:
    """Raise InputError unless the data set holds what the sweep was started with, wherever it lies."""
    if dataset.digest != record.data_sha256:
        raise InputError(f"{dataset.path} has other images or masks than {folder} was started with.")


def sweep_split(folder: str | os.PathLike, dataset: Dataset) -> dict[str, np.ndarray]:
    """All folds' images to train on, none to validate with, and the sweep's test images."""
    check_data(open_sweep(folder), dataset, folder)
    repeats, test, _ = read_folds(Path(folder), dataset)
    return {"train": np.sort(np.concatenate(repeats[0])), "val": np.empty(0, int), "test": test}


def read_chosen(folder: str | os.PathLike) -> Chosen:
    """The chosen arm of a finished sweep: its name, its changes, the epochs to train, and its trainings' folders.

    Raises:
        FileNotFoundError, InputError: there is no sweep, or it is not finished.
    """
    open_sweep(folder)
    path = Path(folder) / CHOSEN
    if not path.exists():
        raise InputError(f"{folder} is not finished, so that no arm is chosen; run its `segdrop sweep` command again.")
    return read_json(path, Chosen, "remove it and run the sweep's command again, which writes it anew")


def read_test(folder: str | os.PathLike) -> HeldOutScores | None:
    """The scores of test images, or None where they have not been asked for."""
    path = Path(folder) / TEST
    return read_json(path, HeldOutScores, ADVICE) if path.exists() else None


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
    try:
        config = config_of(open_sweep(folder).config.train, chosen["changes"])
    except InputError as error:
        raise InputError(f"{Path(folder) / CHOSEN} does not fit: {error}") from error
    fields = {"seed": chosen["seed"], "from_sweep": str(folder), "stop_after": chosen["stop_after"]}
    # Whether recalibration did good would be told by validation images.
    return dataclasses.replace(config, **{**fields, "train_fraction": 1.0, "recalibrate_batchnorm": False, **changes})


def fold_runs(folder: str | os.PathLike) -> list[Path]:
    """The run's folders of the chosen arm's trainings."""
    return [Path(folder) / TRAININGS / name for name in read_chosen(folder)["trainings"]]
