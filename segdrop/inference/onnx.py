"""ONNX files: written, opened, run."""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

from ..cells import draw_cells
from ..config.checks import check_whole
from ..errors import InputError
from ..images.intensity import scale
from .metadata import KEY, RECIPE, Metadata, metadata_in, recipe

OPSETS = (15, 18)  # tf2onnx's default, and the last that it writes


def open_onnx(path: str | os.PathLike) -> tuple[Metadata, Callable[[np.ndarray], np.ndarray]]:
    """Open an ONNX file that `export` wrote.

    Returns:
        The metadata; and the network as a function from images, float32 (N, H, W, 3 or what `channels` and
        `context_slices` make), 0..255, to probabilities, float32 (N, H, W, C). It runs on a GPU where onnxruntime has
        one.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no ONNX file of segdrop's, or onnxruntime is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no ONNX file: {path}.")
    session = onnx_session(path, providers())
    with reading(path):
        stored, function = session.get_modelmeta().custom_metadata_map, onnx_function(session)
    return metadata_in(stored, path), function


def read_metadata(path: Path) -> Metadata:
    """The metadata that `open_onnx` gives, for whoever runs the file otherwise."""
    if not path.exists():
        raise FileNotFoundError(f"There is no ONNX file: {path}.")
    with reading(path):
        stored = {entry.key: entry.value for entry in load_onnx(path).metadata_props}
    return metadata_in(stored, path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong within is the fault of the file: errors of protobuf and of the engines have no class in
    common, and names that are not UTF-8 are found when they are asked for."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is not an ONNX file that can be read; export it again.") from error


def load_onnx(path: Path):
    """The protobuf of an ONNX file.

    Raises:
        InputError: it keeps tensors in files outside of its folder.
    """
    _check_data_of(path)
    return require_package("onnx").load(path)


def _check_data_of(path: Path) -> None:
    """Raise InputError where an ONNX file has its tensors in files that do not lie in its folder, or below, themselves:
    whoever wrote it could have any file read."""
    if b"location" not in path.read_bytes():  # the key of a tensor's file: without the package it is seen, too
        return
    folder = path.parent.resolve()
    for tensor in _tensors(require_package("onnx").load(path, load_external_data=False)):
        for entry in tensor.external_data:
            place = Path(entry.value)
            if entry.key == "location" and (
                place.is_absolute() or ".." in place.parts or (folder / place).resolve() != folder / place
            ):
                raise InputError(f"{path} keeps tensors in {place}, which is outside of its folder or a link; refused.")


def _tensors(message) -> Iterator:
    """The tensors with files of their own in a protobuf, wherever they stand in it."""
    if hasattr(message, "external_data"):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for member in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(member)


def check_opset(opset: int, format: str) -> None:
    if format != "onnx":
        raise InputError(f"`opset` belongs to format='onnx', got format={format!r}.")
    first, last = OPSETS
    if check_whole(opset, "opset", minimum=first) > last:
        raise InputError(f"`opset` must be {first} to {last}, got opset={opset}.")


def require_package(package: str, extra: str = "onnx"):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        what = "ONNX" if extra == "onnx" else f"`engine` {extra}"
        raise InputError(f'{what} needs {package}: `pip install "segdrop[{extra}]"`.') from error


def providers() -> list[str]:
    """What onnxruntime is to run on: a GPU where it has one."""
    known = require_package("onnxruntime").get_available_providers()
    return [provider for provider in ("CUDAExecutionProvider", "CPUExecutionProvider") if provider in known]


def export_onnx(model: keras.Model, signature: list, path: Path, opset: int | None = None) -> None:
    """Write a model as Keras and tf2onnx do it."""
    with warnings.catch_warnings(), _garbage_collected_soon():
        warnings.simplefilter("ignore")  # Keras asks NumPy for names that it has no more
        model.export(path, format="onnx", verbose=False, input_signature=signature, opset_version=opset)


def shaped_like(image, probabilities):
    """Probabilities (N, H, W, C) of images, as they are.

    Of one channel tf2onnx makes reshapes of its transpositions, and in a few files of a hundred leaves an axis of
    length 1 in front of the others; said once more, the shape is what it is.
    """
    height, width = keras.ops.shape(image)[1:3]
    return keras.ops.reshape(probabilities, (-1, height, width, probabilities.shape[-1]))


@contextlib.contextmanager
def _garbage_collected_soon() -> Iterator[None]:
    """Within it, Python looks more often for objects that only know each other, and among the new ones alone.

    Each of tf2onnx's forty passes works on a copy of the graph, weights and all, which refers to itself; as seldom as
    Python looks for such by itself, dozens of them lie about.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()  # counts those that are not frozen: it waits until there are a quarter more
    gc.set_threshold(before[0] or 700, 10, 2)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def drawn_images(channels: int, count: int) -> list[np.ndarray]:
    """Cells of `segdrop.cells`, float32 (H, W, channels), 0..255, to compare networks on where there are no others."""
    colours = np.arange(channels) % 3
    return [scale(draw_cells(np.random.default_rng(seed))[0], 0, 255)[..., colours] for seed in range(count)]


def write_onnx(model: keras.Model, signature: list, path: Path, metadata: Metadata, opset: int | None) -> None:
    """Write a model of `image`, `low` and `high`; the last two may be left out by whoever runs it."""
    import onnx

    export_onnx(model, signature, path, opset)
    proto = onnx.load(path)
    # tf2onnx numbers the free dimensions of each tensor anew.
    for tensor in (*proto.graph.input, *proto.graph.output):
        for axis, name in zip(tensor.type.tensor_type.shape.dim, ("N", "H", "W"), strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    # An initializer of an input's name is what it is where it is not given.
    for name, value in zip(("low", "high"), metadata.intensity.window or (0, 255), strict=True):
        shape = model.get_layer(name).output.shape
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, shape[1]), value, np.float32), name))
    onnx.helper.set_model_props(proto, {KEY: json.dumps(dataclasses.asdict(metadata)), RECIPE: recipe(metadata)})
    onnx.save(proto, path)


def onnx_session(path: Path, providers: list[str]):
    runtime = require_package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # it would write to stderr what is raised here
    with reading(path):
        _check_data_of(path)
        return runtime.InferenceSession(path, options, providers=providers)


def onnx_function(session) -> Callable[..., np.ndarray]:
    def probabilities(images, low=0.0, high=255.0):
        return session.run(["probabilities"], onnx_feeds(images, low, high, shapes["low"][1]))[0]

    shapes = {tensor.name: tensor.shape for tensor in (*session.get_inputs(), *session.get_overridable_initializers())}

    return probabilities


def onnx_feeds(images, low, high, count: int) -> dict[str, np.ndarray]:
    """The inputs of an exported network, which takes `count` bounds of each image: one, or one for each channel."""
    bounds = {"low": low, "high": high}
    columns = {name: np.full((len(images), count), value, np.float32) for name, value in bounds.items()}
    return {"image": np.asarray(images, np.float32), **columns}
