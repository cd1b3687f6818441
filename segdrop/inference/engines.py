"""The same network run by another program: ONNX Runtime or OpenVINO."""

import tempfile
import typing
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from ..config.predict import Engine
from ..errors import InputError, VerificationError
from ..surgery.dropout import remove_dropout
from ..surgery.rebuild import in_float32
from .onnx import (
    drawn_images,
    export_onnx,
    load_onnx,
    onnx_feeds,
    onnx_session,
    providers,
    reading,
    require_package,
    shaped_like,
)

Function = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 1e-4  # of a probability, as in `segdrop.export`


def check_engine(engine: str) -> None:
    """Raise InputError unless `engine` is one, and installed."""
    engines = typing.get_args(Engine)
    if engine not in engines:
        raise InputError(f"`engine` must be one of {', '.join(engines)}, got engine={engine!r}.")
    if engine == "openvino":
        require_package(engine, engine)
    if engine in ("onnxruntime", "openvino"):
        require_package("onnxruntime")


def function_of_model(model: keras.Model, engine: str) -> Function:
    """A Keras model, without its dropout and in float32, as `engine` runs it: what it is given is what it gives.

    It is written as ONNX, which takes some seconds, and its first answer compared with Keras's.

    Args:
        model: from float32 (N, H, W, C), sides multiples of 32, to probabilities.
        engine: "onnxruntime" or "openvino".

    Raises:
        VerificationError: the engine gives something else.
        InputError: a package is missing, or Keras runs on another backend than TensorFlow.

    Example:
        >>> last = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
        >>> model = keras.Sequential([keras.Input((None, None, 3)), last])
        >>> function_of_model(model, "onnxruntime")(np.zeros((1, 32, 64, 3), np.float32)).shape
        (1, 32, 64, 1)
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"`engine` {engine} needs Keras's TensorFlow backend, not {keras.backend.backend()}.")
    for package in ("onnx", "tf2onnx"):
        require_package(package)
    plain = in_float32(remove_dropout(model, all=True))
    said = keras.layers.Lambda(lambda tensors: shaped_like(*tensors))((plain.input, plain.output))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        signature = [keras.InputSpec(shape=plain.input_shape, dtype="float32", name="image")]
        export_onnx(keras.Model(plain.input, said), signature, path)
        function = function_of_file(path, engine)
    _compare(plain, function, engine)
    return function


def function_of_file(path: Path, engine: str) -> Function:
    """An ONNX file of an `image`, and for OpenVINO perhaps of the bounds `low` and `high`, as `engine` runs it: images
    are 0..255."""
    if engine == "onnxruntime":
        session = onnx_session(path, providers())
        return lambda images: session.run(None, {"image": np.asarray(images, np.float32)})[0]
    import openvino

    # In bfloat16, its own choice where a processor has it, masks would be others.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    with reading(path):
        proto = load_onnx(path)
        # What may be left out is a constant to OpenVINO, whatever it is given.
        given = {name.name for name in proto.graph.input}
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in given]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", options)
        inputs = {port.any_name: port.partial_shape for port in compiled.inputs}
        count = inputs["low"][1].get_length() if "low" in inputs else 1

    def infer(images):
        feeds = onnx_feeds(images, 0, 255, count)
        return np.array(compiled({name: feeds[name] for name in inputs})[0])

    return infer


def _compare(model: keras.Model, function: Function, engine: str) -> None:
    images = np.stack(drawn_images(model.input_shape[-1], 2))
    expected, found = keras.ops.convert_to_numpy(model(images, training=False)), function(images)
    # Another shape could be broadcast to this one, and hide.
    difference = np.abs(expected - found).max() if found.shape == expected.shape else np.inf
    if not difference <= TOLERANCE:  # NaN is not
        raise VerificationError(
            f"{engine} gives probabilities that differ by {difference:.3g} from Keras's, more than {TOLERANCE:g}; "
            "predict with engine='keras'."
        )
