"""What an exported network says of itself: how images are prepared for it, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from ..config.checks import check_fields
from ..config.fields import Axis, Channels, Context, Count, Millimetres, Positive, Probability, Scale, count_inputs
from ..conventions import MULTIPLE, TILE
from ..data.values import Values
from ..errors import InputError
from ..images.intensity import Intensity
from ..typed import fit

VERSION = 2  # of what the metadata hold, and of the inputs
READABLE = (1, 2)  # files of version 1 take sides that are multiples of 32, and always `low` and `high`
KEY, RECIPE = "segdrop", "recipe"  # of the ONNX file's metadata
FILE = Path("assets.extra", "segdrop.json")  # in a SavedModel's folder


@dataclass(frozen=True)
class Metadata:
    """What is stored with an exported network.

    Attributes:
        format: version of these metadata.
        segdrop: the version that wrote them.
        class_names: names of class 0, 1, ...
        intensity: how values are mapped to 0..255.
        slice_axis: along which volumes are cut.
        threshold: probability from which a pixel is of a class, where one decides.
        multilabel: whether classes overlap.
        values: of the training images.
        spacing: mm per pixel that images are resampled to; None: they stay as they are.
        scale: factor that images are enlarged by before anything else.
        channels: of the images; None: RGB.
        context_slices: of a volume, before and after each slice.
        tile: side in pixels that large images are cut into.
        multiple: what sides of an image must be multiples of.
        temperature: which the graph applies.

    Raises:
        InputError: a value is out of its range.
    """

    format: int
    segdrop: str
    class_names: tuple[str, ...]
    intensity: Intensity
    slice_axis: Axis
    threshold: Probability
    multilabel: bool = False
    values: Values | None = None
    spacing: Millimetres | None = None
    scale: Scale = 1.0
    channels: Channels | None = None
    context_slices: Context = 0
    tile: Count = TILE
    multiple: Count = MULTIPLE
    temperature: Positive = 1.0

    def __post_init__(self):
        check_fields(self)
        low, high = self.intensity.percentiles
        if not 0 <= low < high <= 100:
            raise InputError(f"`percentiles` must rise within [0, 100], got {self.intensity.percentiles!r}.")
        if self.intensity.window is not None and not self.intensity.window[0] < self.intensity.window[1]:
            raise InputError(f"`window` must rise from low to high, got {self.intensity.window!r}.")


def metadata_in(stored: Mapping[str, str], path: Path) -> Metadata:
    """Those among an ONNX file's own.

    Raises:
        InputError: there are none of segdrop's, or they are damaged or of a later version.
    """
    try:
        content = from_json(stored[KEY])  # whose depth is bounded
        version = content["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} was not written by segdrop: it has no {KEY} metadata; see segdrop export.") from error
    if version not in READABLE:
        raise InputError(f"{path} was written by segdrop {content.get('segdrop')}, which this version cannot read.")
    return fit(Metadata, content, f"What {path} says of its network", "export the run again")


def recipe(metadata: Metadata) -> str:
    """The Python that runs a network of these metadata on an image, for whoever has nothing but its file."""
    rule, values = metadata.intensity, metadata.values
    inputs = count_inputs(metadata.channels, metadata.context_slices)
    own = metadata.channels or metadata.context_slices
    image = f'np.load("image.npy")  # (H, W, {inputs})' if own else 'np.atleast_3d(PIL.Image.open("image.png"))'
    if metadata.spacing:
        image += f"  # resampled to {metadata.spacing:g} mm per pixel"
    feeds, bounds = f'{{"image": np.float32([image * np.ones({inputs})])', []
    if rule.rule == "percentiles":
        axis = ", axis=(0, 1)" if rule.by_channel else ""
        bounds = [f"low, high = np.float32(np.percentile(image, {tuple(rule.percentiles)}{axis})).reshape(2, 1, -1)"]
        feeds += ', "low": low, "high": high'
    elif rule.rule == "dtype" and values and values.stored[1] > 255:
        feeds += ', "high": np.float32([[65535]])'  # what images of more than 8 bits can hold
    if metadata.multilabel:  # 1 for the first class, 2 for the second, 4 for the third ...
        labels = f"(probabilities >= {metadata.threshold:g}) @ (1 << np.arange({len(metadata.class_names) - 1}))"
    else:
        binary = f"probabilities[..., 0] >= {metadata.threshold:g} if probabilities.shape[-1] == 1"
        labels = f"{binary} else probabilities.argmax(-1)"
    lines = [
        "import numpy as np, onnxruntime, PIL.Image",
        f"image = {image}",
        *bounds,
        'session = onnxruntime.InferenceSession("model.onnx")',
        f'probabilities = session.run(["probabilities"], {feeds}}})[0][0]',
        f"labels = {labels}",
    ]
    return "\n".join(lines)
