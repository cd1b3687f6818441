"""Weights in HDF5 files: what is read of whole ones, and what is said of those that would crash who reads them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from segdrop.errors import InputError
from segdrop.nets import hdf5
from segdrop.nets.hdf5 import read_hdf5

SECRET = np.arange(8, dtype="u1")


def write(path, **datasets):
    """A file of Keras 2's with one layer, whose weights are datasets, or made by functions of the group and a name."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [name.encode() for name in datasets]
        for name, data in datasets.items():
            data(group, name) if callable(data) else group.create_dataset(name, data=data)
    return path


def test_weights_come_in_their_order_with_type_and_values(tmp_path):
    values = {name: np.float32([index, 1 / 3]) for index, name in enumerate("zyxwvutsrqpo")}
    stored = read_hdf5(write(tmp_path / "w.h5", **values))
    assert list(stored) == ["conv"] and [value.dtype for value in stored["conv"]] == [np.float32] * 12
    np.testing.assert_array_equal(stored["conv"], list(values.values()))


@pytest.mark.parametrize("flipped", [857, 6201, 2072, 2096, 2120])
def test_a_file_that_crashes_its_reader_or_holds_it_is_refused(flipped, tmp_path, monkeypatch):
    """With HDF5 1.14.6 the first two are segmentation faults, and the others are read without end."""
    monkeypatch.setattr(hdf5, "_PATIENCE", 2)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = [b"a/k:0"]
        group.create_dataset("a/k:0", data=np.ones(3))
    content = bytearray((tmp_path / "w.h5").read_bytes())
    content[flipped] ^= 0xFF
    (tmp_path / "w.h5").write_bytes(content)
    try:
        np.testing.assert_array_equal(read_hdf5(tmp_path / "w.h5")["a"], [[1, 1, 1]])
    except InputError as error:
        assert "w.h5" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("import os; os.abort()", r"w\.h5 is neither .*: reading it crashed \(exit code -6\)\."),
        ("import time; time.sleep(60)", r"w\.h5 was not read in 1 s: it is damaged, or its disk is slow\."),
    ],
)
def test_how_the_reading_ended_is_said(task, message, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_TASK", task)
    monkeypatch.setattr(hdf5, "_PATIENCE", 1)
    with pytest.raises(InputError, match=message):
        read_hdf5(write(tmp_path / "w.h5", kernel=np.ones(1)))


@pytest.mark.parametrize("kind", ["RuntimeError", "KeyError", "MemoryError"])
def test_whatever_hdf5_raises_of_a_damaged_file_is_the_file_s_fault(kind, tmp_path, monkeypatch):
    fault = f"import h5py\ndef get(*_):\n    raise {kind}('message type not found')\nh5py.File.get = get\n"
    monkeypatch.setattr(hdf5, "_TASK", fault + hdf5._TASK)
    with pytest.raises(InputError, match=r"w\.h5 is neither .*message type not found"):
        read_hdf5(write(tmp_path / "w.h5", kernel=np.ones(1)))


def other(group):
    """A file beside a group's."""
    return write(Path(group.file.filename).with_name("other.h5"), kernel=SECRET)


def linked(group, name):
    group[name] = h5py.ExternalLink(other(group), "conv/kernel")


def outside(group, name):
    path = group.file.filename + ".raw"
    SECRET.tofile(path)
    group.create_dataset(name, SECRET.shape, SECRET.dtype, external=[(path, 0, SECRET.nbytes)])


def virtual(group, name):
    layout = h5py.VirtualLayout(SECRET.shape, SECRET.dtype)
    layout[:] = h5py.VirtualSource(other(group), "conv/kernel", SECRET.shape)
    group.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (linked, "kernel lies in another file"),
        (outside, "kernel lies in another file"),
        (virtual, "kernel lies in another file"),
        (np.array([b"text"]), "kernel holds no numbers"),
        (lambda group, name: group.create_dataset(name, (2**30,), "f4", chunks=(2**20,)), "holds 4 GiB, more than 2"),
    ],
    ids=["a link", "values outside", "a virtual dataset", "text", "4 GiB of nothing"],
)
def test_what_is_no_weight_of_the_file_itself_is_refused(data, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_hdf5(write(tmp_path / "w.h5", kernel=data))
