"""Broken files of weights, for networks of the real size."""

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from .attack import Case, Plan, replace_bytes
from .bench import TINY, Bench, words
from .damage import BYTES, Damage
from .structures import DEEP, JSON


def _header(change) -> Damage:
    """A safetensors file with another header."""

    def damage(path: Path, rng: np.random.Generator) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        header = change(content[8 : 8 + length], rng)
        replace_bytes(path, struct.pack("<Q", len(header)) + header + content[8 + length :])

    return damage


def _first_tensor(**values):
    def change(header: bytes, rng: np.random.Generator) -> bytes:
        content = json.loads(header)
        name = sorted(content)[rng.integers(len(content))]
        content[name] = {**content[name], **values}
        return json.dumps(content).encode()

    return change


def _as_json(damage: Damage) -> Damage:
    def broken(path: Path, rng: np.random.Generator) -> None:
        beside = path.with_suffix(".json")

        def change(header: bytes, rng: np.random.Generator) -> bytes:
            beside.write_bytes(header)
            damage(beside, rng)
            return beside.read_bytes()

        _header(change)(path, rng)
        beside.unlink()

    return broken


SAFETENSORS: dict[str, Damage] = {
    "with a header of 2^60 bytes": lambda path, rng: replace_bytes(path, struct.pack("<Q",
    2**60) + path.read_bytes()[8:]),
    "with a header nested deeply": _header(lambda header, rng: b"[" * DEEP),
    "with a tensor of another shape": _header(_first_tensor(shape=[1])),
    "with a tensor of 10^30 values": _header(_first_tensor(shape=[10**10, 10**10, 10**10])),
    "with a tensor outside of the file": _header(_first_tensor(data_offsets=[2**40, 2**41])),
    "with a tensor of an unknown type": _header(_first_tensor(dtype="Q7")),
    "with a tensor of bfloat16": _header(_first_tensor(dtype="BF16")),
    **{f"with a header {what}": _as_json(damage) for what, damage in JSON.items()},
}  # fmt: skip


def _in_h5(change) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        import h5py

        with h5py.File(path, "r+") as file:
            names = sorted(name for name in file if len(file[name]))
            change(file, names[rng.integers(len(names))], rng)

    return damage


def _other_values(file, name, rng) -> None:
    group = file[name]
    weight = group.attrs["weight_names"][0]
    del group[weight]
    values = (np.zeros((2, 2), "f4"), np.array([b"a", b"b"]), np.zeros(0, "f4"), np.array(5.0))
    group[weight] = values[rng.integers(len(values))]


def _link(file, name, rng) -> None:
    import h5py

    del file[name]
    file[name] = (h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"))[
        rng.integers(3)
    ]


def _structure(path: Path, rng: np.random.Generator) -> None:
    """Another byte where HDF5 has its own numbers, outside of all values; of the whole file few bytes are such."""
    import h5py

    own = np.ones(path.stat().st_size, bool)
    with h5py.File(path) as file:

        def leave(_, item) -> None:
            if isinstance(item, h5py.Dataset):
                start = item.id.get_offset()
                own[start : start + item.id.get_storage_size()] = False

        file.visititems(leave)
    content = bytearray(path.read_bytes())
    content[rng.choice(np.flatnonzero(own))] ^= int(rng.integers(1, 256))
    replace_bytes(path, bytes(content))


H5: dict[str, Damage] = {
    **{f"with another byte of its structure {number}": _structure for number in range(4)},
    "without a layer": _in_h5(lambda file, name, rng: file.__delitem__(name)),
    "without its list of layers": _in_h5(lambda file, name, rng: file.attrs.__delitem__("layer_names")),
    "with a list of numbers": _in_h5(lambda file, name, rng: file.attrs.__setitem__("layer_names", [1, 2])),
    "with a list of rubbish": _in_h5(lambda file, name, rng: file.attrs.__setitem__("layer_names", [b"\xff\xfe"])),
    "without a layer's list": _in_h5(lambda file, name, rng: file[name].attrs.__delitem__("weight_names")),
    "with other values": _in_h5(_other_values),
    "with a link for a layer": _in_h5(_link),
    "with a data set for a layer": _in_h5(lambda file, name, rng: (file.__delitem__(name), file.__setitem__(name, 5))),
}
_H5_ENCODER, _TORCH_ENCODER = "resnet18", "torchvision_resnet18"


def make_weights(base: Path) -> None:
    """Files of weights of two families of ResNets, in folders of their own."""
    from conftest import write_weight_file
    from torchvision_files import random_tensors, write_safetensors

    from segdrop.nets.unet import build_unet

    tensors = {name: value.astype(np.float16) for name, value in random_tensors(_TORCH_ENCODER).items()}
    write_safetensors(base / "weights.safetensors", tensors)
    write_weight_file(base / "weights.h5", build_unet(_H5_ENCODER, encoder_weights=None))


def _of_weights(name: str, encoder: str, damage: Damage, bench: Bench, rng: np.random.Generator) -> Plan:
    folder = bench.take("cells", name)
    damage(folder / name, rng)
    options = {**TINY, "--encoder": encoder, "--encoder-weights": name}
    return Plan(
        ("train", "--data", "cells", "--run-dir", "out", *words(options)), (name,), ("out/model.keras",), real=True
    )


def _of_torch(content: bytes, bench: Bench, rng: np.random.Generator) -> Plan:
    folder = bench.take("cells")
    (folder / "weights.pth").write_bytes(content)
    options = {**TINY, "--encoder": _TORCH_ENCODER, "--encoder-weights": "weights.pth"}
    return Plan(("train", "--data", "cells", "--run-dir", "out", *words(options)), ("weights.pth",), real=True)


def cases() -> Iterator[Case]:
    for what, damage in {**BYTES, **SAFETENSORS}.items():
        yield "weights.safetensors", what, partial(_of_weights, "weights.safetensors", _TORCH_ENCODER, damage)
    for what, damage in {**BYTES, **H5}.items():
        yield "weights.h5", what, partial(_of_weights, "weights.h5", _H5_ENCODER, damage)
    for what, content in {
        "empty": b"",
        "pickled": b"\x80\x02c__main__\nno\n.",
        "an archive": b"PK\x03\x04" + bytes(100),
    }.items():
        yield "weights.pth", what, partial(_of_torch, content)
