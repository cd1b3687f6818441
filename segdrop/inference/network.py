"""Trained networks, ready for use: from a run's folder or an exported ONNX file."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from ..config.checks import plain, real_numbers
from ..config.fields import count_inputs
from ..config.predict import Engine
from ..config.train import TrainConfig
from ..conventions import MULTIPLE, OVERLAP, OVERLAPPING, TILE
from ..data.tiles import in_tiles
from ..data.values import Values
from ..errors import InputError
from ..folders.run import model_file, open_run, stored_temperature
from ..images.common import from_array
from ..images.intensity import Bounds, Intensity, rule_of, scale
from ..images.opening import open_image
from ..images.picture import Picture, narrow_range, with_channel_axis
from ..images.resampling import resample, resampled_size, scaled_size
from ..nets.stored import load_model
from ..nets.temperature import at_temperature
from ..scoring.counts import to_labels
from ..surgery.fast import fast
from ..surgery.folding import folded
from ..typed import shortened
from .engines import check_engine, function_of_file, function_of_model
from .onnx import open_onnx, read_metadata


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network with what its images must go through before it.

    Attributes:
        path: the run's folder, or the file.
        class_names: names of class 0, 1, ...; two for a network with one output channel.
        channels: number C of its output channels: 1, or one for each class, the background left out where they overlap.
        multilabel: whether classes overlap, so that a mask's values are sums of bits: 1, 2, 4 ... of class 1, 2, 3 ...
        intensity: the rule that maps an image's values to 0..255.
        values: of its training images, or None where an earlier version has not stored them.
        spacing: mm per pixel that its images have, or None.
        scale: factor that its images are enlarged by.
        slice_axis: axis of a NIfTI volume that its slices were cut along.
        image_channels: number of channels of its images, or None: RGB, with grey repeated to three channels.
        context_slices: slices of a grey volume before and after each slice that are channels beside it.
        temperature: of its probabilities, fitted on validation; 1 where none was.
        threshold: probability from which a pixel is of a class, for networks with one output channel or of overlapping
            classes.
        model: the Keras model, dropout, temperature and all; None for an ONNX file.
        probabilities: maps float32 (N, H, W, input_channels), 0..255, sides multiples of 32, to float32 (N, H, W, C),
            0..1.

    Example:
        >>> network = segdrop.load("runs/first")
        >>> image = np.full((50, 70), 128, np.uint8)
        >>> mask = network.labels(network.predict(image))
        >>> mask.shape, mask.dtype
        ((50, 70), dtype('uint8'))
    """

    path: Path
    class_names: tuple[str, ...]
    channels: int
    multilabel: bool
    intensity: Intensity
    values: Values | None
    spacing: float | None
    scale: float
    slice_axis: int
    image_channels: int | None
    context_slices: int
    temperature: float
    threshold: float
    model: keras.Model | None
    probabilities: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    @property
    def input_channels(self) -> int:
        """Channels of what the network takes."""
        return count_inputs(self.image_channels, self.context_slices)

    @property
    def bounds_count(self) -> int:
        """How many values of an image become 0, and as many 255: one, or one of each channel."""
        return self.input_channels if self.intensity.by_channel else 1

    def open(self, path: str | os.PathLike, *, huge: bool = False) -> Picture:
        """Open an image file as the network's images are read: `preprocess` and `predict` take what `read` gives of it.

        Args:
            huge: see `segdrop.images.opening.open_image`.

        Example:
            >>> picture = segdrop.load("runs/first").open("image.png")
            >>> picture.height, picture.width, picture.slices
            (128, 128, None)
        """
        return open_image(
            path,
            slice_axis=self.slice_axis,
            huge=huge,
            channels=self.image_channels,
            context=self.context_slices,
        )

    def preprocess(
        self,
        image: np.ndarray,
        *,
        bounds: Bounds | None = None,
        spacing: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """What the network takes, float32 (H, W, input_channels), 0..255, of an image's own values.

        Args:
            image: (H, W, input_channels), by default in RGB; grey may be (H, W). With `context_slices` the channels
                are a slice between those before and after it, as `network.open(path).read(index)` gives them.
            bounds: values that become 0 and 255; by default what `intensity` says of this image alone. Of a slice give
                those of the whole volume (`network.intensity.bounds(network.open(path))`).
            spacing: (row, column) mm per pixel; needed where the network has a `spacing`, to which it is resampled.

        Raises:
            InputError: the rule or the spacing needs what the image does not have.

        Example:
            >>> network = segdrop.load("runs/first")
            >>> prepared = network.preprocess(np.full((50, 70), 65535, np.uint16))
            >>> prepared.shape, float(prepared.max())
            ((50, 70, 3), 255.0)
        """
        picture = self._as_picture(np.asarray(image))
        values = picture.read()
        limits = real_numbers(self.intensity.bounds(picture) if bounds is None else bounds)
        fits = limits is not None and limits.shape in ((2,), (2, *values.shape[2:])) and np.isfinite(limits).all()
        if not fits or (limits[0] > limits[1]).any():
            raise InputError(
                "`bounds` must be the two values that become 0 and 255, or those of each channel, (2, C), the lower "
                f"first, got bounds={shortened(plain(bounds))}."
            )
        return self.resample(scale(values, *limits), spacing)

    def _as_picture(self, image: np.ndarray) -> Picture:
        takes_grey = self.image_channels in (None, 1) and not self.context_slices
        grey = takes_grey and image.ndim == 2
        if (not grey and (image.ndim != 3 or image.shape[2] != self.input_channels)) or not image.size:
            shapes = "(H, W) or " * takes_grey + f"(H, W, {self.input_channels})"
            raise InputError(f"`image` must have the shape {shapes}, got {image.shape}.")
        if image.dtype.kind not in "iuf":
            raise InputError(f"`image` must hold whole or floating-point numbers, got {image.dtype}.")
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise InputError("`image` holds values that are not finite; replace them.")
        picture = from_array(Path("`image`"), image, narrow_range(image.dtype))
        return with_channel_axis(picture) if grey and self.image_channels else picture

    def resample(self, image: np.ndarray, spacing: tuple[float, float] | None) -> np.ndarray:
        """The image at the network's `spacing` and `scale`; as it is where these change nothing."""
        size = np.array(image.shape[:2])
        if self.spacing is not None and spacing is None:
            raise InputError(f"{self.path} was trained at {self.spacing:g} mm per pixel; the image's own is unknown.")
        if self.spacing is not None:
            size = np.array(resampled_size(*size.tolist(), spacing, self.spacing))
        return resample(image, tuple(scaled_size(size, self.scale).tolist()))

    @property
    def resamples(self) -> bool:
        """Whether its images have another size than the files'."""
        return self.spacing is not None or self.scale != 1

    def predict(
        self,
        image: np.ndarray,
        *,
        bounds: Bounds | None = None,
        spacing: tuple[float, float] | None = None,
        tile: int = TILE,
        overlap: int = OVERLAP,
    ) -> np.ndarray:
        """Probabilities, float32 (H, W, C), of an image of any size; arguments as in `preprocess` and `tile_rows`.

        Example:
            >>> network = segdrop.load("runs/first")
            >>> network.predict(np.zeros((50, 70, 3), np.uint8)).shape
            (50, 70, 1)
        """
        prepared = self.preprocess(image, bounds=bounds, spacing=spacing)
        return resize(in_tiles(self.probabilities, prepared, tile, overlap), np.shape(image)[:2])

    def labels(self, probabilities: np.ndarray) -> np.ndarray:
        """Class indices, or sums of bits of overlapping classes, uint8 (..., H, W), of probabilities (..., H, W, C).

        Example:
            >>> segdrop.load("runs/first").labels([[[0.2], [0.5]]])
            array([[0, 1]], dtype=uint8)
        """
        probabilities = np.asarray(probabilities)
        if probabilities.dtype.kind not in "biuf" or probabilities.shape[-1:] != (self.channels,):
            raise InputError(
                f"`probabilities` must be numbers of the shape (..., H, W, {self.channels}), got "
                f"{probabilities.dtype} of {probabilities.shape}."
            )
        return to_labels(probabilities, self.threshold, self.multilabel)

    @property
    def takes_threshold(self) -> bool:
        """Whether a threshold decides on its classes, and not which of them is the most probable."""
        return self.channels == 1 or self.multilabel


def load(run: str | os.PathLike | keras.Model, *, precision: str = "stored", engine: Engine = "auto") -> Network:
    """Load a trained network: model, classes, threshold and pre-processing.

    Args:
        run: a run's folder, an ONNX file that `segdrop export` wrote, or a network of one's own: a Keras model from
            images of any size, 0..255, to probabilities, as `segdrop.build_unet` makes them, or its `.keras` file;
            several channels after a sigmoid are classes that overlap. Classes then have no names, and images are of 8
            bits, or mapped to them by their integer type's range.
        precision: "stored": compute as in training; "float32": compute exactly, slower on machines with bfloat16.
        engine: what runs it: "keras", or in float32 "onnxruntime" or "openvino", which a run is written as ONNX for;
            "auto": keras, which begins at once, and for an ONNX file onnxruntime.

    Raises:
        FileNotFoundError, InputError: there is no run, it has no model yet, or the model is not one that can be loaded
            safely.

    Example:
        >>> network = segdrop.load("runs/first")
        >>> network.class_names, network.channels, network.threshold
        (('background', 'cell'), 1, 0.5)
    """
    if precision not in ("stored", "float32"):
        raise InputError(f"`precision` must be stored or float32, got precision={precision!r}.")
    check_engine(engine)
    if isinstance(run, keras.Model):
        return _of_model(run, Path(run.name), precision, engine)
    path = Path(run)
    if path.suffix == ".keras" and path.is_file():
        return _of_model(load_model(path), path, precision, engine)
    if path.is_file():
        return _load_onnx(path, engine)
    return _load_run(path, precision, engine)


def _load_run(path: Path, precision: str, engine: Engine) -> Network:
    record = open_run(path)
    temperature = stored_temperature(path)
    multilabel = record.config.multilabel
    model = _in_precision(at_temperature(load_model(model_file(path)), temperature, multilabel), precision)
    names = record.class_names
    inputs = record.config.input_channels
    if tuple(model.input_shape) != (None, None, None, inputs):
        wanted = "RGB images" if inputs == 3 else f"images of {inputs} channel(s)"
        raise InputError(f"{path} has a network for {model.input_shape}, not for {wanted} of any size.")
    channels = model.output_shape[-1]
    if len(names) != max(channels + multilabel, 2):
        raise InputError(f"{path} has a network with {channels} output channels and {len(names)} class names.")
    return Network(
        path=path,
        class_names=names,
        channels=channels,
        multilabel=multilabel,
        intensity=rule_of(record.config),
        values=record.values,
        spacing=record.config.spacing,
        scale=record.config.scale,
        slice_axis=record.config.slice_axis,
        image_channels=record.config.channels,
        context_slices=record.config.context_slices,
        temperature=temperature,
        threshold=0.5,
        model=model,
        probabilities=_probabilities(model, engine, folded),
    )


def _of_model(model: keras.Model, path: Path, precision: str, engine: Engine) -> Network:
    """A network that no run describes."""
    shapes = [model.input_shape, model.output_shape]
    if any(not isinstance(shape, tuple) or len(shape) != 4 for shape in shapes):
        raise InputError(f"{path} must map one image to one map of probabilities, got {shapes[0]} to {shapes[1]}.")
    if shapes[0][1:3] != (None, None):
        raise InputError(f"{path} is for {shapes[0]} alone; build it with input_shape=(None, None, {shapes[0][3]}).")
    activation = getattr(model.layers[-1], "activation", None)
    if activation is keras.activations.linear:
        raise InputError(
            f"{path} ends in {model.layers[-1].name!r}, whose values are not probabilities; add a sigmoid or softmax."
        )
    model = _in_precision(model, precision)
    inputs, channels = shapes[0][3], shapes[1][3]
    multilabel = channels > 1 and activation is keras.activations.sigmoid
    count = max(channels + multilabel, 2)
    if multilabel and channels > OVERLAPPING:
        raise InputError(f"{path} gives {channels} overlapping classes; a mask can hold {OVERLAPPING}.")
    names = ("background", "foreground") if count == 2 else ("background", *(f"class {n}" for n in range(1, count)))
    return Network(
        path=path,
        class_names=names,
        channels=channels,
        multilabel=multilabel,
        intensity=Intensity(),
        values=None,
        spacing=None,
        scale=1.0,
        slice_axis=TrainConfig.slice_axis,
        image_channels=None if inputs == 3 else inputs,
        context_slices=0,
        temperature=1.0,
        threshold=0.5,
        model=model,
        # The caller's own model may be trained on: the twin shares its weights.
        probabilities=_probabilities(model, engine, fast),
    )


def _in_precision(model: keras.Model, precision: str) -> keras.Model:
    if precision == "stored":
        return model
    from ..surgery.rebuild import in_float32

    return in_float32(model)


def _probabilities(model: keras.Model, engine: Engine, faster: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """What a model gives, by an engine; by Keras it is the twin that `faster` makes of it that gives it."""
    if engine in ("onnxruntime", "openvino"):
        return function_of_model(model, engine)
    twin = faster(model)
    return lambda images: np.asarray(twin.predict_on_batch(images), np.float32)


def _load_onnx(path: Path, engine: Engine) -> Network:
    if path.suffix.lower() != ".onnx":
        raise InputError(f"`run` must be a run's folder, or an .onnx or .keras file, got {path}.")
    if engine == "keras":
        raise InputError(f"`engine` keras runs a run's network; {path} is an ONNX file, for another engine.")
    if engine == "openvino":
        metadata, probabilities = read_metadata(path), function_of_file(path, engine)
    else:
        metadata, probabilities = open_onnx(path)
    try:
        inputs = count_inputs(metadata.channels, metadata.context_slices)
        outputs = probabilities(np.zeros((1, MULTIPLE, MULTIPLE, inputs), np.float32)).shape[-1]
        if len(metadata.class_names) != max(outputs + metadata.multilabel, 2):
            raise ValueError(f"{len(metadata.class_names)} classes for {outputs} outputs")
    except Exception as error:  # also what an engine says of a graph with other inputs
        raise InputError(f"{path} is not a complete export of segdrop; export the run again.") from error
    return Network(
        path=path,
        class_names=metadata.class_names,
        channels=outputs,
        multilabel=metadata.multilabel,
        intensity=metadata.intensity,
        values=metadata.values,
        spacing=metadata.spacing,
        scale=metadata.scale,
        slice_axis=metadata.slice_axis,
        image_channels=metadata.channels,
        context_slices=metadata.context_slices,
        temperature=metadata.temperature,
        threshold=metadata.threshold,
        model=None,
        probabilities=probabilities,
    )


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample (H, W, K) to `size`, (height, width), averaging where it becomes smaller."""
    return resample(values, size).reshape(*size, -1)
