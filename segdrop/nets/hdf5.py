"""Weights out of HDF5 files, read in a process of its own.

HDF5's library, which is C, can crash on a damaged file, or read it without end; neither can be caught where it happens.
"""

import io
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from ..errors import InputError, first_line

_TASK = "import sys; path, *sys.path[:] = sys.argv[1:]; from segdrop.nets.hdf5 import _work; _work(path)"
_PATIENCE = 20.0  # seconds, and one more for each of
_PACE = 5e6  # bytes
_MOST = 2**31  # bytes; the largest encoder of segmentation_models has 0.45e9


def read_hdf5(path: Path) -> dict[str, list[np.ndarray]]:
    """The weights of each layer by its name, in its order.

    Args:
        path: of a weight file of Keras 2's, as the published ImageNet weights are, a whole model of Keras 2's, or what
            Keras 3's `save_weights` has written.

    Raises:
        InputError: it is none of these, is damaged, cannot be read within 20 s and 1 s for each 5 MB, holds more than
            2 GiB, or names weights that lie in another file.
    """
    patience = _PATIENCE + path.stat().st_size / _PACE
    command = [sys.executable, "-W", "ignore", "-c", _TASK, str(path), *sys.path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path} was not read in {patience:.0f} s: it is damaged, or its disk is slow.") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said and done.returncode == 1 else f"reading it crashed (exit code {done.returncode})"
        raise InputError(
            f"{path} is neither a .keras model, its weights (.weights.h5) nor a Keras 2 HDF5 weight file: {reason}."
        )
    stored: dict[str, list[np.ndarray]] = {}
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
        for name in arrays.files:
            stored.setdefault(name.rpartition("/")[0], []).append(arrays[name])
    return stored


def _work(path: str) -> None:
    """Write the weights of a file to stdout as an `.npz`, each named by its layer and its place in it."""
    try:
        with h5py.File(path) as file:
            keras_3 = "layers" in file and "layer_names" not in file.attrs
            stored = _keras_3_weights(file) if keras_3 else _keras_2_weights(file)
            _check(file, [dataset for datasets in stored.values() for dataset in datasets])
            values = {
                f"{layer}/{place}": np.asarray(dataset)
                for layer, datasets in stored.items()
                for place, dataset in enumerate(datasets)
            }
    except Exception as error:  # HDF5's own come as any of Python's
        sys.exit(first_line(error))
    np.savez(sys.stdout.buffer, **values)


def _check(file: h5py.File, datasets: list[h5py.Dataset]) -> None:
    for dataset in datasets:
        if dataset.dtype.kind not in "fiu":
            raise ValueError(f"{dataset.name} holds no numbers")
        if dataset.file != file or dataset.external or dataset.is_virtual:
            raise ValueError(f"{dataset.name} lies in another file")
    if (size := sum(dataset.size * dataset.dtype.itemsize for dataset in datasets)) > _MOST:
        raise ValueError(f"it holds {size / 2**30:.3g} GiB, more than {_MOST / 2**30:.0f} GiB")


def _keras_2_weights(file: h5py.File) -> dict[str, list[h5py.Dataset]]:
    group = file.get("model_weights", file)
    return {
        name: [group[name][weight] for weight in group[name].attrs["weight_names"]]
        for name in (_text(n) for n in group.attrs["layer_names"])
    }


def _keras_3_weights(file: h5py.File) -> dict[str, list[h5py.Dataset]]:
    """What `save_weights` has written: a group `vars` for each layer, whose number is that of its class and not its
    name; but the group tells it."""
    stored = {}

    def visit(_, group) -> None:
        if isinstance(group, h5py.Group) and "name" in group.attrs and len(group):
            stored[_text(group.attrs["name"])] = [group[str(index)] for index in range(len(group))]

    file.visititems(visit)
    return stored


def _text(name) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
