"""What a prediction is told to do."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

from ..conventions import OVERLAP, TILE
from ..errors import InputError
from .checks import at_least, check_fields, check_rate, check_tile, within

Engine = Literal["auto", "keras", "onnxruntime", "openvino"]


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """How to predict; see `segdrop.predict`."""

    ensemble: tuple[Path, ...] = ()
    """Further runs, whose probabilities are averaged with the first's."""
    tile: int = TILE
    """Side of the tiles that larger images are cut into, in pixels, a multiple of 32."""
    overlap: int = OVERLAP
    """Overlap of neighbouring tiles in pixels, a multiple of 32, at most half a tile."""
    margin: int = 0
    """Pixels to discard at the tiles' inner borders, at most half the overlap; by default they have little weight."""
    tta: Literal["none", "flips", "d4"] = "none"
    """Test-time augmentation: mean over 4 flips, or over all 8 flips and quarter turns."""
    mc_samples: Annotated[int, at_least(0)] = 0
    """Monte Carlo dropout: samples of each prediction; 0 predicts once, without dropout."""
    mc_rate: float | None = None
    """A dropout rate for these samples instead of the network's own."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of the samples."""
    uncertainty: bool = False
    """Write maps of uncertainty, of Monte Carlo samples, an ensemble, or both; of one prediction it is the entropy."""
    probabilities: Literal["none", "tiff", "npz"] = "none"
    """Write the class probabilities, as float16."""
    overlay: bool = False
    """Write a picture of the image with its mask, and one of its uncertainty."""
    threshold: Annotated[float, within("in (0, 1)", lambda value: 0 < value < 1)] | None = None
    """Probability from which a pixel is foreground, for one output channel; by default the network's, 0.5."""
    precision: Literal["stored", "float32"] = "stored"
    """Compute as in training, or exactly."""
    engine: Engine = "auto"
    """What runs the network; auto: keras, or onnxruntime for an ONNX file. The last two compute exactly."""

    def __post_init__(self):
        if isinstance(self.ensemble, (str, os.PathLike)):
            object.__setattr__(self, "ensemble", (self.ensemble,))
        check_tile(self.tile, self.overlap, self.margin)
        check_fields(self)
        if self.mc_rate is not None:
            if not check_rate(self.mc_rate, "mc_rate"):
                raise InputError("`mc_rate` must be above 0, for samples to differ, got mc_rate=0.")
            if not self.mc_samples:
                raise InputError("`mc_rate` needs mc_samples.")
        if self.mc_samples and self.engine not in ("auto", "keras"):
            raise InputError(f"`mc_samples` needs engine='keras', whose networks have dropout, got {self.engine!r}.")

    @property
    def keeps_moments(self) -> bool:
        return self.uncertainty or self.mc_samples > 0
