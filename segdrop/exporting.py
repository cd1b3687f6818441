"""A run's network as a file that runs without Keras: ONNX, or a TensorFlow SavedModel."""

import dataclasses
import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from . import __version__
from .cells import draw_cells
from .config import MULTIPLE, TILE, check_whole
from .dropout import remove_dropout
from .errors import InputError, VerificationError
from .evaluation import open_data, recorded_split
from .intensity import scale
from .loading import Network, load
from .pipeline import evaluation_batches
from .run import open_run, stored_config, write_json
from .surgery import rebuild

KEY = "segdrop"  # of the ONNX file's metadata
VERSION = 1  # of what the metadata hold
METADATA = Path("assets.extra", "segdrop.json")  # in a SavedModel's folder
OPSETS = (15, 18)  # tf2onnx's default, and the last that it writes


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What an export leaves.

    Attributes:
        path: the file, or the folder of a SavedModel.
        difference: the largest one of a probability to the run's own network in float32.
        images: what the difference was measured on, in words.
    """

    path: Path
    difference: float
    images: str


def export(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    format: Literal["onnx", "saved_model"] = "onnx",
    opset: int | None = None,
    tolerance: float = 1e-4,
) -> ExportResult:
    """Write a run's best network, without its dropout and in float32, to a file that needs neither Keras nor segdrop.

    The network in the file takes `image`, float32 (N, H, W, 3), RGB in the image's own values, H and W multiples of
    32 (pad by reflection), and `low` and `high`, float32 (N, 1): the values of each image that become 0 and 255 (0 and
    255 for 8 bits, 0 and 65535 for 16, a CT's window); values outside are clipped, and an image whose `high` is not
    above its `low` is taken as 0 everywhere. It gives `probabilities`, float32 (N, H, W, C), C = 1 for a binary one.
    Number and size of the images are free. With the file go, as JSON, the names of the classes and how the run's images
    were prepared: in the ONNX metadata under `segdrop`, and in `assets.extra/segdrop.json` of a SavedModel.

    What was written is run beside the run's network before it gets its name, in two batches of different sizes, on up
    to four images of the run's validation split, or on drawn cells where the data set cannot be opened any more.

    Args:
        run: the run's folder.
        out: the file, or for a SavedModel the folder, to make.
        format: `"onnx"` or `"saved_model"`.
        opset: version of the ONNX operators, 15 to 18; by default tf2onnx's.
        tolerance: the largest difference of a probability that is accepted.

    Raises:
        VerificationError: the exported network gives something else; nothing is left at `out`.
        FileExistsError: `out` exists.
        FileNotFoundError: there is no such run, or no folder to put `out` into.
        InputError: the run cannot be used, an argument is wrong, or a package for ONNX is missing.
    """
    if format not in ("onnx", "saved_model"):
        raise InputError(f"`format` must be onnx or saved_model, got format={format!r}.")
    if opset is not None:
        _check_opset(opset, format)
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"Exporting needs Keras's TensorFlow backend, not {keras.backend.backend()}.")
    out = Path(out)
    record = open_run(run)
    if out.exists():
        raise FileExistsError(f"`out` exists: {out}; choose another name or delete it.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"`out` lies in a folder that does not exist: {out.absolute().parent}; make it first.")
    if format == "onnx":
        for package in ("onnx", "onnxruntime", "tf2onnx"):
            _require(package)
    # A GPU would compute convolutions in TF32, and the two would differ by its rounding.
    with keras.device("cpu:0"):
        trained = load(run)
        network, metadata = in_float32(remove_dropout(trained.model, all=True)), _metadata(trained)
        images, source = _real_images(run, record)
        # A folder of its own, so that nothing half-written is ever called `out`.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
            written = Path(folder, out.name)
            if format == "onnx":
                _write_onnx(network, written, metadata, opset)
                exported = _onnx_function(_session(written, ["CPUExecutionProvider"]))
            else:
                _write_saved_model(network, written, metadata)
                exported = _saved_model_function(written)
            difference = _largest_difference(network, exported, images)
            if not difference <= tolerance:  # NaN is not
                raise VerificationError(
                    f"The exported network differs from the run's by {difference:.3g} on {source}, more than "
                    f"{tolerance:g}; {out} was not written."
                )
            os.replace(written, out)
    return ExportResult(out, difference, source)


def open_onnx(path: str | os.PathLike) -> tuple[dict, Callable[[np.ndarray], np.ndarray]]:
    """Open an ONNX file that `export` wrote.

    Returns:
        The metadata: `format` (1), `segdrop` (the version that wrote it), `class_names`, `intensity` (`rule`,
        `percentiles`, `window`), `spacing` in mm per pixel or None, `slice_axis`, `tile` in pixels, `multiple` (what
        sides must be multiples of), `threshold`; and the network as a function from images, float32 (N, H, W, 3),
        0..255, to probabilities, float32 (N, H, W, C). It runs on a GPU where onnxruntime has one.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no ONNX file of segdrop's, or onnxruntime is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no ONNX file: {path}.")
    runtime = _require("onnxruntime")
    known = runtime.get_available_providers()
    session = _session(path, [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in known])
    try:
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
        version = metadata["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} was not written by segdrop: it has no {KEY} metadata; see segdrop export.") from error
    if version != VERSION:
        raise InputError(f"{path} was written by segdrop {metadata.get('segdrop')}, which this version cannot read.")
    return metadata, _onnx_function(session)


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of `model` with equal weights whose layers all compute in float32, whatever their policy.

    Raises:
        InputError: a layer cannot be copied.
        TypeError: `model` is not a functional or Sequential Keras 3 model.
    """
    copy = rebuild(model)
    for layer in copy._flatten_layers():
        layer.dtype_policy = "float32"
    return rebuild(copy)  # the tensors of the first copy are still of the old dtypes


def _check_opset(opset: int, format: str) -> None:
    if format != "onnx":
        raise InputError(f"`opset` belongs to format='onnx', got format={format!r}.")
    first, last = OPSETS
    if check_whole(opset, "opset", minimum=first) > last:
        raise InputError(f"`opset` must be {first} to {last}, got opset={opset}.")


def _require(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f'ONNX needs {package}: `pip install "segdrop[onnx]"`.') from error


def _metadata(network: Network) -> dict:
    return {
        "format": VERSION,
        "segdrop": __version__,
        "class_names": list(network.class_names),
        "intensity": dataclasses.asdict(network.intensity),
        "spacing": network.spacing,
        "slice_axis": network.slice_axis,
        "tile": TILE,
        "multiple": MULTIPLE,
        "threshold": network.threshold,
    }


def _with_bounds(network: keras.Model) -> tuple[keras.Model, list]:
    """The network behind the mapping of `low`..`high` to 0..255, and the signature of its inputs."""
    shapes = {"image": (None, None, 3), "low": (1,), "high": (1,)}
    inputs = [keras.Input(shape, name=name, dtype="float32") for name, shape in shapes.items()]
    image = inputs[0]
    low, high = (keras.ops.reshape(bound, (-1, 1, 1, 1)) for bound in inputs[1:])
    # Clipped first: an empty range then gives 0 times something finite.
    above = keras.ops.maximum(keras.ops.minimum(image, high), low) - low
    outputs = network(above * (255 / keras.ops.maximum(high - low, 1e-30)))
    signature = [keras.InputSpec(shape=i.shape, dtype="float32", name=i.name) for i in inputs]
    return keras.Model(inputs, {"probabilities": outputs}), [signature]


def _write_onnx(network: keras.Model, path: Path, metadata: dict, opset: int | None) -> None:
    import onnx

    model, signature = _with_bounds(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras asks NumPy for names that it has no more
        model.export(path, format="onnx", verbose=False, input_signature=signature, opset_version=opset)
    proto = onnx.load(path)
    # tf2onnx numbers the free dimensions of each tensor anew.
    for tensor in (*proto.graph.input, *proto.graph.output):
        for axis, name in zip(tensor.type.tensor_type.shape.dim, ("N", "H", "W"), strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    onnx.save(proto, path)


def _write_saved_model(network: keras.Model, path: Path, metadata: dict) -> None:
    model, signature = _with_bounds(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(path, format="tf_saved_model", verbose=False, input_signature=signature)
    (path / METADATA).parent.mkdir()
    write_json(path / METADATA, metadata)


def _session(path: Path, providers: list[str]):
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # it would write to stderr what is raised here
    try:
        return runtime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its exceptions have no class in common
        raise InputError(f"{path} is not an ONNX file that can be read; export it again.") from error


def _onnx_function(session) -> Callable[..., np.ndarray]:
    def probabilities(images, low=0.0, high=255.0):
        return session.run(["probabilities"], _feeds(images, low, high))[0]

    return probabilities


def _saved_model_function(path: Path) -> Callable[..., np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def probabilities(images, low=0.0, high=255.0):
        feeds = {name: tf.constant(value) for name, value in _feeds(images, low, high).items()}
        return loaded.signatures["serving_default"](**feeds)["probabilities"].numpy()

    return probabilities


def _feeds(images, low, high) -> dict[str, np.ndarray]:
    bounds = {"low": low, "high": high}
    columns = {name: np.full((len(images), 1), value, np.float32) for name, value in bounds.items()}
    return {"image": np.asarray(images, np.float32), **columns}


def _real_images(run, record: dict, count: int = 4) -> tuple[list[np.ndarray], str]:
    """Up to `count` images, float32 (H, W, 3), 0..255, of the run's validation split, and what they are in words."""
    try:
        config = stored_config(run)
        dataset = open_data(config.data, record, config, cache_mb=0)
        batches = evaluation_batches(dataset, recorded_split(Path(run), dataset, "val")[:count], 1)
        images = [batches.read(batch)[0][0] for batch in batches.plan]
    except (InputError, OSError):  # an export needs the network alone
        images = []
    if images:
        return images, f"{len(images)} image(s) of the run's validation split"
    drawn = [draw_cells(np.random.default_rng(seed))[0] for seed in range(count)]
    return [
        scale(image, 0, 255) for image in drawn
    ], f"{count} drawn images, because the run's data set could not be read"


def _largest_difference(network: keras.Model, exported: Callable[..., np.ndarray], images: list[np.ndarray]) -> float:
    one = _fitted(images[0], 256, 192)[None]
    four = np.stack([_fitted(images[i % len(images)], 96, 128) for i in range(4)])
    differences = []
    # The second batch is in values such as a CT's, some of them outside the bounds.
    for batch, low, high in ((one, 0, 255), (four * np.float32(8) - 1024, -900, 900)):
        prepared = np.stack([scale(image, low, high) for image in batch])
        expected = keras.ops.convert_to_numpy(network(prepared, training=False))
        differences.append(np.abs(expected - exported(batch, low, high)).max())
    return float(np.max(differences))


def _fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image, continued by reflection where it is too small."""
    top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape, (height, width), strict=False))
    middle = image[top : top + height, left : left + width]
    missing = [(0, want - have) for want, have in zip((height, width), middle.shape, strict=False)]
    return np.pad(middle, (*missing, (0, 0)), mode="reflect")
