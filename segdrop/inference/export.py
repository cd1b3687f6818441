"""A run's network as a file that runs without Keras: ONNX, or a TensorFlow SavedModel."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import keras
import numpy as np
from keras import ops

from ..conventions import MULTIPLE, TILE
from ..data.batches import evaluation_batches
from ..data.opening import open_configured
from ..errors import InputError, VerificationError
from ..files import write_json
from ..folders.run import RunRecord, open_run, recorded_split
from ..images.intensity import scale
from ..locks import unfinished
from ..surgery.dropout import remove_dropout
from ..surgery.rebuild import in_float32
from ..version import __version__
from .metadata import FILE, VERSION, Metadata
from .network import Network, load
from .onnx import (
    check_opset,
    drawn_images,
    onnx_feeds,
    onnx_function,
    onnx_session,
    require_package,
    shaped_like,
    write_onnx,
)


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

    The network in the file takes `image`, float32 (N, H, W, 3), RGB in the image's own values, of any size (it is
    continued by reflection to multiples of 32, and what lies beyond cut off); and `low` and `high`, float32 (N, 1): the
    values of each image that become 0 and 255 (0 and 65535 for 16 bits, two percentiles). An ONNX file takes them for 0
    and 255, or for the ends of the run's window, where they are left out; a SavedModel asks for them. Values outside
    are clipped, and an image whose `high` is not above its `low` is taken as 0 everywhere. After a training with
    `channels` image, low and high have so many channels, each with bounds of its own; with `context_slices` K the
    2K + 1 channels of image are a slice between those before and after it. It gives `probabilities`, float32
    (N, H, W, C), C = 1 for a binary one.

    Number and size of the images are free. With the file go, as JSON, the names of the classes and how the run's images
    were prepared: in the ONNX metadata under `segdrop`, and in `assets.extra/segdrop.json` of a SavedModel. Under
    `recipe` the ONNX metadata have the five lines of Python that run the network.

    What was written is run beside the run's network before it gets its name, in two batches of different sizes, on up
    to four images of the run's validation split, or on drawn cells where the data set cannot be opened any more.

    Args:
        run: the run's folder.
        out: the file to make, whose name ends in .onnx, or for a SavedModel the folder.
        format: `"onnx"` or `"saved_model"`.
        opset: version of the ONNX operators, 15 to 18; by default tf2onnx's.
        tolerance: the largest difference of a probability that is accepted.

    Raises:
        VerificationError: the exported network gives something else; nothing is left at `out`.
        FileExistsError: `out` exists.
        FileNotFoundError: there is no such run, or no folder to put `out` into.
        InputError: the run cannot be used, an argument is wrong, or a package for ONNX is missing.

    Example:
        >>> done = segdrop.export("runs/first", "network.onnx")
        >>> done.difference < 1e-4
        True
        >>> segdrop.load("network.onnx").predict(np.zeros((50, 70), np.uint8)).shape
        (50, 70, 1)
    """
    if format not in ("onnx", "saved_model"):
        raise InputError(f"`format` must be onnx or saved_model, got format={format!r}.")
    if opset is not None:
        check_opset(opset, format)
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"Exporting needs Keras's TensorFlow backend, not {keras.backend.backend()}.")
    out = Path(out)
    record = open_run(run)
    if (out.suffix == ".onnx") != (format == "onnx"):  # by which segdrop tells what it is given
        raise InputError(
            f"`out` must {'' if format == 'onnx' else 'not '}end in .onnx for format={format!r}, got {out}."
        )
    if out.exists():
        raise FileExistsError(f"`out` exists: {out}; choose another name or delete it.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"`out` lies in a folder that does not exist: {out.absolute().parent}; make it first.")
    if format == "onnx":
        for package in ("onnx", "onnxruntime", "tf2onnx"):
            require_package(package)
    # A GPU would compute convolutions in TF32, and the two would differ by its rounding.
    with keras.device("cpu:0"):
        trained = load(run)
        network, metadata = in_float32(remove_dropout(trained.model, all=True)), _metadata(trained)
        images, source = _real_images(run, record)
        # A folder of its own, so that nothing half-written is ever called `out`.
        with unfinished(out) as folder:
            written = folder / out.name
            model, signature = _for_any_image(network, trained.bounds_count)
            if format == "onnx":
                write_onnx(model, signature, written, metadata, opset)
                exported = onnx_function(onnx_session(written, ["CPUExecutionProvider"]))
            else:
                _write_saved_model(model, signature, written, metadata, out)
                exported = _saved_model_function(written)
            difference = _largest_difference(network, exported, images)
            if not difference <= tolerance:  # NaN is not
                raise VerificationError(
                    f"The exported network differs from the run's by {difference:.3g} on {source}, more than "
                    f"{tolerance:g}; {out} was not written."
                )
            os.replace(written, out)
    return ExportResult(out, difference, source)


def _metadata(network: Network) -> Metadata:
    return Metadata(
        format=VERSION,
        segdrop=__version__,
        class_names=network.class_names,
        multilabel=network.multilabel,
        intensity=network.intensity,
        values=network.values,
        spacing=network.spacing,
        scale=network.scale,
        slice_axis=network.slice_axis,
        channels=network.image_channels,
        context_slices=network.context_slices,
        tile=TILE,
        multiple=1,
        temperature=network.temperature,
        threshold=network.threshold,
    )


class _AnyImage(keras.layers.Layer):
    """A network for images of any size in their own values.

    They are mapped from `low`..`high`, `count` of each for an image, to 0..255 and continued by reflection to sides
    that are multiples of 32; what the network says of the continuation is cut off.
    """

    def __init__(self, network: keras.Model, count: int):
        super().__init__(dtype="float32")
        self.network, self.count = network, count

    def call(self, image, low, high):
        low, high = (ops.reshape(bound, (-1, 1, 1, self.count)) for bound in (low, high))
        # Clipped first: an empty range then gives 0 times something finite.
        above = ops.maximum(ops.minimum(image, high), low) - low
        prepared = above * (255 / ops.maximum(high - low, 1e-30))
        height, width = ops.shape(image)[1:3]
        for axis, length in enumerate((height, width), 1):
            period = ops.maximum(2 * (length - 1), 1)
            # Of whole numbers above 0 alone: tf2onnx rounds the quotients of others towards 0.
            there_and_back = ops.arange((length + MULTIPLE - 1) // MULTIPLE * MULTIPLE, dtype="int32") % period
            prepared = ops.take(prepared, ops.minimum(there_and_back, period - there_and_back), axis=axis)
        return shaped_like(image, self.network(prepared)[:, :height, :width])


def _for_any_image(network: keras.Model, count: int) -> tuple[keras.Model, list]:
    """The network as `_AnyImage` has it, and the signature of its inputs."""
    shapes = {"image": network.input_shape[1:], "low": (count,), "high": (count,)}
    inputs = [keras.Input(shape, name=name, dtype="float32") for name, shape in shapes.items()]
    signature = [keras.InputSpec(shape=i.shape, dtype="float32", name=i.name) for i in inputs]
    return keras.Model(inputs, {"probabilities": _AnyImage(network, count)(*inputs)}), [signature]


def _write_saved_model(model: keras.Model, signature: list, path: Path, metadata: Metadata, out: Path) -> None:
    """Write what will be `out` to `path`.

    Raises:
        OSError: the disk is full, for instance, which TensorFlow tells by an error of its own.
    """
    import tensorflow as tf

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.export(path, format="tf_saved_model", verbose=False, input_signature=signature)
    except tf.errors.OpError as error:
        reason = error.message.rpartition("; ")[2].partition(" [Op:")[0]
        raise OSError(f"{out} cannot be written: {reason}.") from error
    (path / FILE).parent.mkdir()
    write_json(path / FILE, dataclasses.asdict(metadata))


def _saved_model_function(path: Path) -> Callable[..., np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    function = loaded.signatures["serving_default"]
    bounds = function.structured_input_signature[1]["low"].shape[1]

    def probabilities(images, low=0.0, high=255.0):
        feeds = {name: tf.constant(value) for name, value in onnx_feeds(images, low, high, bounds).items()}
        return function(**feeds)["probabilities"].numpy()

    return probabilities


def _real_images(run, record: RunRecord, count: int = 4) -> tuple[list[np.ndarray], str]:
    """Up to `count` images, float32 (H, W, C), 0..255, of the run's validation split, and what they are in words."""
    try:
        config = record.config
        dataset = open_configured(config, config.data, outputs=record.classes, cache_mb=0)
        batches = evaluation_batches(dataset, recorded_split(Path(run), dataset, "val")[:count], 1)
        images = [batches.read(batch)[0][0] for batch in batches.plan]
    except (InputError, OSError):  # an export needs the network alone
        images = []
    if images:
        return images, f"{len(images)} image(s) of the run's validation split"
    drawn = drawn_images(record.config.input_channels, count)
    return drawn, f"{count} drawn images, for want of validation images of the run's that can be read"


def _largest_difference(network: keras.Model, exported: Callable[..., np.ndarray], images: list[np.ndarray]) -> float:
    one_image = _fitted(images[0], 256, 192)[None]
    four_images = np.stack([_fitted(images[i % len(images)], 96, 128) for i in range(4)])
    differences = []
    # The second batch is in values such as a CT's, some of them outside the bounds.
    for batch, low, high in ((one_image, 0, 255), (four_images * np.float32(8) - 1024, -900, 900)):
        prepared = np.stack([scale(image, low, high) for image in batch])
        expected = keras.ops.convert_to_numpy(network(prepared, training=False))
        found = exported(batch, low, high)
        # Another shape could be broadcast to this one, and hide.
        differences.append(np.abs(expected - found).max() if found.shape == expected.shape else np.inf)
    return float(np.max(differences))


def _fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image, continued by reflection where it is too small."""
    top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape, (height, width), strict=False))
    middle = image[top : top + height, left : left + width]
    missing = [(0, want - have) for want, have in zip((height, width), middle.shape, strict=False)]
    return np.pad(middle, (*missing, (0, 0)), mode="reflect")
