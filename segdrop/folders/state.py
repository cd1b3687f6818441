"""What a resumed training needs, in one file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import write_atomically
from .run import HISTORY, METRICS, STATE


def save_state(path: Path, variables: Sequence, history: Sequence[Mapping]) -> None:
    """Store the values of Keras variables and the history of the epochs that led to them."""
    arrays = {f"v{i}": np.asarray(variable) for i, variable in enumerate(variables)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, history=np.array(json.dumps(list(history))), **arrays)  # pyright: ignore[reportArgumentType]

    write_atomically(path / STATE, write)


def load_history(path: Path) -> list[dict]:
    """The history in the stored state; empty where the run was stopped before its first epoch ended.

    Raises:
        InputError: the run is finished, or keeps no state.
    """
    if not (path / STATE).is_file():
        if (path / METRICS).is_file():
            raise InputError(f"{path} is a finished run; there is nothing to resume.")
        if (path / HISTORY).is_file():
            raise InputError(f"{path} keeps no state to go on from, as trainings of a sweep do not; start a new run.")
        return []
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
