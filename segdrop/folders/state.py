"""What a resumed training needs, in one file, with the one before beside it."""

import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, first_line
from ..files import write_atomically
from ..typed import fit
from .run import HISTORY, METRICS

STATE, PREVIOUS = "state.npz", "state.previous.npz"  # removed when the run is finished


def is_interrupted(run: Path) -> bool:
    """Whether a run has not finished, and has a state to go on from."""
    return any((run / name).exists() for name in (STATE, PREVIOUS))


def save_state(path: Path, variables: Sequence, history: Sequence[Mapping]) -> None:
    """Store the values of Keras variables and the history of the epochs that led to them; the state before is kept."""
    arrays = {f"v{i}": np.asarray(variable) for i, variable in enumerate(variables)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, history=np.array(json.dumps(list(history))), **arrays)  # pyright: ignore[reportArgumentType]
        if (path / STATE).exists():
            os.replace(path / STATE, path / PREVIOUS)

    write_atomically(path / STATE, write)


def remove_states(run: Path) -> None:
    """Declare a run finished: nothing is left to resume."""
    for name in (PREVIOUS, STATE):
        (run / name).unlink(missing_ok=True)


def load_history(path: Path) -> list[dict]:
    """The history in the stored state; empty where the run was stopped before its first epoch ended.

    Raises:
        InputError: the run is finished, or keeps no state, or its states are damaged.
    """
    if not is_interrupted(path):
        if (path / METRICS).is_file():
            raise InputError(f"{path} is a finished run; there is nothing to resume.")
        if (path / HISTORY).is_file():
            raise InputError(f"{path} keeps no state to go on from, as trainings of a sweep do not; start a new run.")
        return []
    return _load(path, says=True)[0]


def restore_state(path: Path, variables: Sequence) -> None:
    """Assign the first `len(variables)` values of the stored state.

    Raises:
        InputError: they are not those of such a network.
    """
    _, values = _load(path)
    shapes = [tuple(variable.shape) for variable in variables]
    if [value.shape for value in values[: len(shapes)]] != shapes:
        raise InputError(f"{path / STATE} is another network's; restore it from a copy, or start the run again.")
    for variable, value in zip(variables, values, strict=False):
        variable.assign(value)


def _load(path: Path, says: bool = False) -> tuple[list[dict], list[np.ndarray]]:
    """History and values of the state, or of the one before it where that is damaged, which is said."""
    faults = []
    for name in (STATE, PREVIOUS):
        if (path / name).exists():
            try:
                found = _read(path / name)
            except Exception as error:  # of a damaged ZIP file comes what its parts' decoders raise
                faults.append(f"{path / name} is damaged: {first_line(error)}")
                continue
            if faults and says:
                warnings.warn(f"{faults[0]}; going on from the state of the epoch before.", stacklevel=3)
            return found
    raise InputError(f"{faults[0]}; there is no whole state to resume, start the run again.")


def _read(path: Path) -> tuple[list[dict], list[np.ndarray]]:
    """History and values of a file, no more of it than it has; ZIP's checksums tell whether it is as it was written."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > size or members[0].header_offset:
            raise ValueError("it holds more, or less, than it says")
        arrays = {member.filename: _array(archive.read(member)) for member in members}
    history = fit(list[dict[str, float | int | None]], json.loads(str(arrays.pop("history.npy"))), "its history")
    if not history or [row.get("epoch") for row in history] != list(range(len(history))):
        raise ValueError("its epochs are not 0, 1, 2 ...")
    if any("loss" not in row or row.keys() != history[0].keys() for row in history):
        raise ValueError("its epochs have not the same measures")
    return history, [arrays[f"v{i}.npy"] for i in range(len(arrays))]


def _array(content: bytes) -> np.ndarray:
    """An array in NumPy's format; one that claims to be larger than its file is none."""
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or stream.tell() + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array in it is not what its header says")
    stream.seek(0)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if dtype.kind == "f" and not np.isfinite(array).all():  # no epoch ends so
        raise ValueError("it holds numbers that are not finite")
    return array


def best_epoch(history: Sequence[Mapping]) -> int:
    """The first epoch with the highest validation Dice, an undefined one being the lowest; the last one where there was
    no validation."""
    if "val_dice" not in history[0]:
        return int(history[-1]["epoch"])
    scores = [-math.inf if math.isnan(row["val_dice"]) else row["val_dice"] for row in history]
    return int(history[int(np.argmax(scores))]["epoch"])
