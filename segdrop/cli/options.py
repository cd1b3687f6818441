"""The commands and their options."""

import copy
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..config.checks import at_least, within
from ..config.fields import Count, Kind, Placement, Positive, Schedule
from ..config.predict import PredictOptions
from ..config.sweep import SweepConfig
from ..config.train import TrainConfig
from ..conventions import OVERLAP, TILE
from ..errors import InputError


@dataclasses.dataclass(frozen=True)
class LoadsModels:
    """What every command takes that loads a model."""

    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE"), tyro.conf.UseAppendAction] = (
        dataclasses.field(default=(), kw_only=True)
    )
    """A module to import first, installed or in the current folder, which registers layers that the model has."""

    @property
    def arguments(self) -> dict:
        """All that the command's function takes."""
        return {name: value for name, value in vars(self).items() if name != "imports"}


# How to read a data set is said as for a training, with the same words; what else a training takes is left out.
_READING = (
    "images masks annotator classes multilabel ignore_value intensity intensity_percentiles intensity_window "
    "spacing slice_axis channels context_slices cache_mb"
).split()
_ReadsData = dataclasses.make_dataclass(
    "_ReadsData",
    [
        (field.name, tyro.conf.Suppress[tyro.conf.Fixed[field.type]], copy.copy(field))
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _READING
    ],
    bases=(TrainConfig,),
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class DataOptions(_ReadsData):
    """Look at a data set before training: what it holds, and what looks wrong."""

    data: tyro.conf.Positional[str] = dataclasses.field()
    out: Path | None = None
    """Folder for a page (data.html), a contact sheet (contact_sheet.png) and the numbers (data.json)."""
    to: Path | None = None
    """A new folder to write the data set to in the plain layout: images/ and masks/ with the same names."""
    json: bool = False
    """Print the numbers as JSON instead of tables."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(LoadsModels):
    """Score a run's best model: overlap, distances, calibration, and with samples how well it knows its errors."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    data: str | None = None
    """Data set; by default the run's own, with the run's split."""
    split: str = "test"
    """train, val, test, or all."""
    mc_samples: int = 0
    """Monte Carlo dropout samples of each image, to score uncertainty; 0: none."""
    ensemble: tuple[Path, ...] = ()
    """Further runs, to score the uncertainty of all together."""
    seed: int = 0
    """Seed of these samples, and of the intervals' resampling."""
    tolerance: float = 2.0
    """Of the surface Dice, in pixels, or in mm where the images tell their spacing."""
    tile: int = TILE
    """Side of the tiles that larger images are cut into, in pixels, a multiple of 32."""
    overlap: int = OVERLAP
    """Overlap of neighbouring tiles in pixels, a multiple of 32, at most half a tile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictFilesOptions(LoadsModels, PredictOptions):
    """Write masks, and if asked for probabilities, uncertainty and overlays, of images of any size and format."""

    run: tyro.conf.Positional[Path]
    """The run's folder, a finished sweep's, or an exported .onnx file."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders (with their subfolders), or globs."""
    out: Path
    """Folder to write to, a new one."""
    resume: bool = False
    """Go on in --out where the same command was interrupted."""


@dataclasses.dataclass(frozen=True)
class ViewOptions(LoadsModels):
    """Look at images, masks, probabilities and uncertainty in the browser; nothing leaves this machine."""

    run: tyro.conf.Positional[Path]
    """The run's folder, a finished sweep's, or an exported .onnx file."""
    inputs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Images, folders (with their subfolders), or globs to choose from; others can be dropped on the page."""
    port: int | None = None
    """Port of 127.0.0.1, by default a free one."""
    open: bool = True
    """Show the page in your browser."""


@dataclasses.dataclass(frozen=True)
class RankOptions(LoadsModels):
    """Which unlabelled images should be annotated next: those that the network is unsure of, and that differ."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders (with their subfolders), or globs."""
    count: int = 25
    """How many to choose."""
    out: Path | None = None
    """Folder for a page (ranking.html) and a table of all images (ranking.csv), by default the run's."""
    mc_samples: Count = 20
    """Monte Carlo dropout samples of each image, where the network has dropout."""
    seed: int = 0
    """Seed of the samples and of the choice."""
    json: bool = False
    """Print all images as JSON instead of a table of the chosen."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(LoadsModels):
    """Write one HTML file: a run with its scores, plots and pictures, several runs side by side, or a sweep."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The run's folder; several, of the same data, to compare the others with the first; or a sweep's folder."""
    out: Path | None = None
    """The file to write; by default report.html in the run's folder, of several runs.html in the current one,
    of a sweep answer.html in its folder."""
    split: str = "test"
    """train, val or test."""
    mc_samples: int = 20
    """Monte Carlo dropout samples for one run's pictures of uncertainty, where the network has dropout."""
    images: int = 3
    """How many of the best, of the median and of the worst images to show; of several runs, of those that differ."""
    seed: int = 0
    """Seed of the samples."""


@dataclasses.dataclass(frozen=True)
class ExportOptions(LoadsModels):
    """Write a run's network for use elsewhere: no dropout, float32, intensity scaling inside, checked."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """The file to write, NAME.onnx, or folder; by default model.onnx or saved_model in the run's folder."""
    format: Literal["onnx", "saved_model"] = "onnx"
    """ONNX, or TensorFlow's SavedModel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(LoadsModels, SweepConfig):
    """Does dropout help on these data? Train with and without it on the same folds, and tell how sure the answer is."""

    folder: tyro.conf.Positional[Path]
    """The sweep's folder: a new one, or one to go on with or to join; then it may stand alone."""
    rates: tuple[float, ...] = ()
    """Dropout rates to compare with 0, by default 0.1 0.2 0.3 0.5."""
    kinds: tuple[Kind, ...] = ()
    """Kinds of dropout, by default spatial; with --grid or --encoder-dropout what those and --dropout-kind say."""
    placements: tuple[Placement, ...] = ()
    """Places of the dropout in its units."""
    blocks: tuple[str, ...] = ()
    """Stages or units, those of one arm joined by commas: stage4 stage3,stage4."""
    schedules: tuple[Schedule, ...] = ()
    """How rates change during training."""
    grid: str | None = None
    """Any fields of the training and their values as JSON, {"lr": [0.001, 0.0003]}, or a file of it; a list of such
    mappings is one grid after the other, and for --search {"low": 0.05, "high": 0.5} is a range."""
    alternatives: bool = False
    """Beside these, train what else is done against overfitting: averaged weights, stronger augmentation, smoothed
    labels, more weight decay, pasted objects, mixed images."""
    storage: str | None = None
    """Database for many machines, postgresql://user@host/database; by default a file in the folder, for one machine."""
    workers: int | None = None
    """Processes on this machine, by default one for each GPU, else one; they share the cores."""
    dry_run: bool = False
    """Tell the arms, the number of trainings, how long they would take and what they could tell; train nothing."""
    spread: float | None = None
    """With --dry-run: standard deviation of a training's Dice about its arm and fold, as an earlier answer tells it."""
    pilot: Path | None = None
    """With --dry-run: a sweep's folder, finished or not, to take the spread from."""
    detect: float | None = None
    """With --dry-run: the difference of Dice to be told in four of five such sweeps; proposes folds, repeats and arms
    that can."""
    hours: Positive | None = None
    """With --detect: what the sweep may take on this machine."""
    report: bool = False
    """Answer from what is finished by now, and train nothing."""
    test: bool = False
    """With --report: score the chosen arm of a finished sweep on the test images, once."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)
    """What all trainings have in common."""

    def __post_init__(self):
        super().__post_init__()
        for name, needed in (("spread", "dry_run"), ("pilot", "dry_run"), ("detect", "dry_run"), ("hours", "detect")):
            if getattr(self, name) is not None and not getattr(self, needed):
                raise InputError(f"`{name}` needs {needed}, which tells what a sweep could tell; give both.")
        for name, other in (("report", "dry_run"), ("test", "dry_run"), ("spread", "pilot")):
            if getattr(self, name) and getattr(self, other):
                raise InputError(f"`{name}` contradicts {other}; give one of them.")


@dataclasses.dataclass(frozen=True)
class InspectOptions(LoadsModels):
    """Show the dropout layers of a run or a model file, and which layers each affects; or where dropout might help."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or a .keras file."""
    image_size: Count | None = None
    """Side of the images that shapes are shown for; by default a run's crop size, and open for a file."""
    verify: bool = False
    """Prove that the model is the plain one with working dropout in it and nothing else changed."""
    svg: Path | None = None
    """Write a picture of the network with its dropout marked."""
    csv: Path | None = None
    """Write the table as CSV, with the names of all layers affected."""
    json: Path | None = None
    """Write the table as JSON."""
    sensitivity: bool = False
    """Of a run: how much Dice falls on its training and its validation images where dropout is on in one stage alone, a
    hint where it might help; takes minutes."""
    mc_rate: Annotated[float, within("a number in (0, 1)", lambda value: 0 < value < 1)] = 0.2
    """Of --sensitivity: the rate of that dropout, in (0, 1)."""
    mc_samples: Count = 5
    """Of --sensitivity: predictions of each image, with other maps dropped."""
    mc_images: Annotated[int, at_least(2)] = 100
    """Of --sensitivity: images of the training and of the validation split as many at most."""
    seed: int = 0
    """Of --sensitivity: seed of the images, the samples and the intervals' resampling."""
