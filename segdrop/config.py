"""The configuration of a training run: one frozen dataclass, from which the command line is made."""

import dataclasses
import math
import numbers
import os
import typing
from pathlib import Path
from typing import Literal

from .errors import InputError

Kind = Literal["element", "spatial", "block", "path"]
Placement = Literal["between_convs", "branch_end", "block_end", "activations", "bottleneck", "skips"]
Schedule = Literal["constant", "ramp", "anneal", "warmup"]
DROPOUT_KINDS: tuple[str, ...] = typing.get_args(Kind)
PLACEMENTS: tuple[str, ...] = typing.get_args(Placement)
MULTIPLE = 32  # of the sides of what the network sees: the U-Net halves them five times
TILE, OVERLAP = 1024, 256  # pixels; larger images are predicted in tiles


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a ResNet U-Net with dropout in its encoder."""

    data: str = "data/cells"
    """Folder with images/ and masks/ (same stems), or a CSV file with the columns image and mask."""
    run_dir: str | None = None
    """The run's own folder; by default a new one under runs/."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 8
    """Crops per training step."""
    crop_size: int = 128
    """Height and width of the training crops in pixels, a multiple of 32; smaller images are padded."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, after warm-up and before cosine decay to zero."""
    loss: Literal["dice_ce", "dice", "focal", "tversky"] = "dice_ce"
    """Dice plus cross-entropy, Dice, focal, or Tversky."""
    augment: str = "medical"
    """none, light, medical, microscopy, or an Albumentations file (JSON or YAML)."""
    seed: int = 0
    """Seed of split, initial weights, order, augmentation and dropout."""
    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet34"
    """The encoder."""
    encoder_weights: str = "auto"
    """imagenet; none (random); a weight file; or auto: ImageNet if it can be had, else random with a warning."""
    encoder_dropout: float | dict[str, float] | tuple[float, float] = 0.0
    """Probability of dropping, 0 <= rate < 1; one per block: stage3=0.1,stage4=0.2; or a ramp over depth: 0.05..0.3."""
    spatial: bool = False
    """Drop whole feature maps: short for --dropout-kind spatial."""
    dropout_kind: Kind | None = None
    """What is dropped together: single values (default), whole feature maps, squares of maps, or a sample's branch."""
    dropout_block_size: int | None = None
    """Side of the squares of --dropout-kind block in pixels of the feature map, by default 3."""
    dropout_shared: bool = False
    """Drop the same in all samples of a batch."""
    dropout_blocks: tuple[str, ...] | None = None
    """Stages, units or globs, comma-separated; by default stage3 and stage4 without the last unit."""
    dropout_placement: Placement = "between_convs"
    """Where: in the chosen units before the last convolution, at the end of the residual branch, after the addition, or
    after every activation; or after the encoder's last activation; or on the skips."""
    dropout_schedule: Schedule = "constant"
    """How rates change: not at all; rise from 0; fall to 0; or are 0 at first."""
    dropout_schedule_epochs: int | None = None
    """Epochs that the schedule's change takes, by default half of all."""
    skips: Literal["clean", "dropped"] | None = None
    """Whether the decoder receives a skip as it was before dropout (clean, unless the placement is skips)."""
    bn_momentum: float = 0.9
    """Momentum of BatchNorm's moving statistics: 0.99, Keras's default, lags by more steps than a small set has."""
    recalibrate_batchnorm: bool = False
    """Re-estimate BatchNorm's statistics with dropout off after training; kept if validation Dice does not fall."""
    freeze_epochs: int = 0
    """Epochs at the start in which the encoder is frozen, BatchNorm included."""
    classes: int | None = None
    """Number of classes counting the background, except 1: binary. By default from the data set."""
    ignore_value: int | None = None
    """Mask value of pixels that are neither trained on nor scored."""
    intensity: Literal["dtype", "percentiles", "window"] = "dtype"
    """What becomes 0..255: the range of the integer type, that between two percentiles of an image, or a window."""
    intensity_percentiles: tuple[float, float] = (0.5, 99.5)
    """The two percentiles of --intensity percentiles, of an image or a whole volume."""
    intensity_window: tuple[float, float] | None = None
    """Lowest and highest value of --intensity window, in the files' values; by default each file's own window."""
    spacing: float | None = None
    """Millimetres per pixel that all images are resampled to; by default they stay as they are."""
    slice_axis: int = 2
    """Axis (0, 1 or 2) along which NIfTI volumes are cut into slices."""
    stratify: str | None = None
    """Column of a CSV file of the data set to balance the split by."""
    val_fraction: float = 0.15
    """Share of the images cut off for each split that the data set does not give."""
    train_fraction: float = 1.0
    """Share of the training images that are used, whole groups of each stratum; smaller shares lie within larger."""
    patience: int = 15
    """Stop after this many epochs without a better validation Dice."""
    stop_after: int | None = None
    """Stop after this many epochs of the learning rate's course over all --epochs."""
    from_sweep: str | None = None
    """Folder of a finished sweep: train on the images of all its folds, without validation; the last epoch is kept."""
    cache_mb: int = 2048
    """Memory for decoded images in MiB; what does not fit is read from disk."""
    mixed_precision: Literal["off", "float16", "bfloat16", "auto"] = "auto"
    """Compute dtype; auto: float16 on a GPU with tensor cores, bfloat16 on a CPU that computes in it, else off."""
    gpus: Literal["one", "all"] = "one"
    """Train on one GPU, or divide each batch among all there are."""
    resume: bool = False
    """Continue the run in --run-dir after its last finished epoch."""

    def __post_init__(self):
        for name in ("data", "run_dir", "augment", "encoder_weights", "from_sweep"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"`{name}` must be text, got {name}={getattr(self, name)!r}.")
        for name in ("epochs", "batch_size", "patience"):
            _require_whole(self, name, minimum=1)
        for name in ("seed", "freeze_epochs", "cache_mb"):
            _require_whole(self, name, minimum=0)
        _require_whole(self, "crop_size", minimum=32)
        if self.seed >= 2**32:
            raise InputError(f"`seed` must be below 2^32, got seed={self.seed}.")
        if self.crop_size % 32:
            raise InputError(f"`crop_size` must be a multiple of 32, got crop_size={self.crop_size}.")
        if not (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf):
            raise InputError(f"`lr` must be a positive number, got lr={self.lr!r}.")
        if not (_is_finite(self.bn_momentum) and 0 <= self.bn_momentum < 1):
            raise InputError(f"`bn_momentum` must be in [0, 1), got bn_momentum={self.bn_momentum!r}.")
        if not 0 < self.val_fraction <= 1 / 3:  # validation and test may both be cut
            raise InputError(f"`val_fraction` must be in (0, 1/3], got val_fraction={self.val_fraction!r}.")
        if not (_is_finite(self.train_fraction) and 0 < self.train_fraction <= 1):
            raise InputError(f"`train_fraction` must be in (0, 1], got train_fraction={self.train_fraction!r}.")
        if self.classes is not None:
            _require_whole(self, "classes", minimum=1)
            if self.classes > 255:
                raise InputError(f"`classes` must be at most 255, got classes={self.classes}.")
        if self.ignore_value is not None and not 0 <= self.ignore_value <= 255:
            raise InputError(f"`ignore_value` must be in 0..255, got ignore_value={self.ignore_value!r}.")
        self._check_intensity()
        if self.freeze_epochs > self.epochs:
            raise InputError(f"`freeze_epochs` must be at most epochs={self.epochs}, got {self.freeze_epochs}.")
        if isinstance(self.dropout_blocks, (list, str)):  # as JSON and callers in a hurry write it
            blocks = self.dropout_blocks.split(",") if isinstance(self.dropout_blocks, str) else self.dropout_blocks
            object.__setattr__(self, "dropout_blocks", tuple(blocks))
        _check_choices(self)
        if isinstance(self.encoder_dropout, list):  # as JSON writes it
            object.__setattr__(self, "encoder_dropout", tuple(self.encoder_dropout))
        rates = self.encoder_dropout
        if isinstance(rates, tuple) and len(rates) != 2:
            raise InputError(f"`encoder_dropout` as a ramp has two rates, got encoder_dropout={rates!r}.")
        rates = list(rates.values()) if isinstance(rates, dict) else rates if isinstance(rates, tuple) else [rates]
        for rate in rates:
            check_rate(rate, "encoder_dropout")
        for name in ("dropout_block_size", "dropout_schedule_epochs", "stop_after"):
            if getattr(self, name) is not None:
                _require_whole(self, name, minimum=1)
        if self.dropout_schedule == "constant" and self.dropout_schedule_epochs is not None:
            raise InputError("`dropout_schedule_epochs` needs a dropout_schedule other than constant.")
        if self.dropout_schedule != "constant" and not any(rates):
            raise InputError(f"`dropout_schedule` {self.dropout_schedule} needs an encoder_dropout above 0.")
        if self.dropout_block_size is not None and self.dropout_kind != "block":
            raise InputError(f"`dropout_block_size` needs dropout_kind='block', got {self.dropout_kind!r}.")
        if self.spatial and self.dropout_kind not in (None, "spatial"):
            raise InputError(f"`spatial` contradicts dropout_kind={self.dropout_kind!r}; give one of them.")
        if self.resume and self.run_dir is None:
            raise InputError("`resume` needs run_dir, the folder of the run to continue.")

    def _check_intensity(self) -> None:
        for name in ("intensity_percentiles", "intensity_window"):
            pair = getattr(self, name)
            if pair is None and name == "intensity_window":
                continue
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(_is_finite, pair)):
                raise InputError(f"`{name}` must be two numbers, got {name}={pair!r}.")
            if not pair[0] < pair[1]:
                raise InputError(f"`{name}` must rise from low to high, got {name}={pair!r}.")
            object.__setattr__(self, name, tuple(map(float, pair)))  # JSON writes lists
        low, high = self.intensity_percentiles
        if not 0 <= low < high <= 100:
            raise InputError(f"`intensity_percentiles` must be in [0, 100], got {self.intensity_percentiles!r}.")
        if self.intensity_window is not None and self.intensity != "window":
            raise InputError(f"`intensity_window` needs intensity='window', got {self.intensity!r}.")
        if self.spacing is not None and not (_is_finite(self.spacing) and self.spacing > 0):
            raise InputError(f"`spacing` must be a positive number of millimetres, got spacing={self.spacing!r}.")
        if isinstance(self.slice_axis, bool) or self.slice_axis not in (0, 1, 2):
            raise InputError(f"`slice_axis` must be 0, 1 or 2, got slice_axis={self.slice_axis!r}.")

    def to_json(self) -> dict:
        """A JSON-ready dict that `TrainConfig(**d)` turns back into an equal configuration."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What a sweep compares, and on how many trainings; see `segdrop.sweep`."""

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """What all trainings have in common; its seed is that of the folds."""
    grid: dict | list | None = None
    """Values of fields of the training: {"encoder_dropout": [0.1, 0.3], "lr": [0.001]}; or a list of such mappings."""
    folds: int = 5
    """Folds of the cross-validation."""
    repeats: int = 1
    """Times that the images are divided into folds anew; a finished sweep can be asked for more."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, with every one of which each fold of each arm is trained; a finished sweep can be asked for more."""
    search: int = 0
    """Number of arms to propose from the grid's values and ranges (Optuna's TPE), instead of all combinations."""
    prune: bool = False
    """In a search, drop an arm whose first fold is below the median of the other proposals', once there are four."""
    hold_out: bool = True
    """Keep test images out of the folds: those of the given split, else some that are cut off."""

    def __post_init__(self):
        check_whole(self.folds, "folds", minimum=2)
        check_whole(self.repeats, "repeats", minimum=1)
        check_whole(self.search, "search", minimum=0)
        seeds = self.seeds if isinstance(self.seeds, (tuple, list)) else (self.seeds,)
        object.__setattr__(self, "seeds", tuple(check_whole(seed, "seeds", minimum=0) for seed in seeds))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or max(self.seeds) >= 2**32:
            raise InputError(f"`seeds` must be one or more different numbers below 2^32, got seeds={self.seeds!r}.")
        if self.prune and not self.search:
            raise InputError("`prune` belongs to a search; a grid trains every fold of every arm.")
        if self.train.gpus != "one":
            raise InputError("`gpus` is not for a sweep, whose workers each take a GPU.")
        for name in ("resume", "run_dir", "from_sweep"):
            if getattr(self.train, name):
                raise InputError(f"`{name}` is not for a sweep, which goes on by itself in its own folder.")

    def to_json(self) -> dict:
        """A JSON-ready dict that `from_json` turns back into an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: dict) -> "SweepConfig":
        return cls(**{**stored, "train": TrainConfig(**stored["train"])})


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
    mc_samples: int = 0
    """Monte Carlo dropout: samples of each prediction; 0 predicts once, without dropout."""
    mc_rate: float | None = None
    """A dropout rate for these samples instead of the network's own."""
    seed: int = 0
    """Seed of the samples."""
    uncertainty: bool = False
    """Write maps of uncertainty, of Monte Carlo samples, an ensemble, or both; of one prediction it is the entropy."""
    probabilities: Literal["none", "tiff", "npz"] = "none"
    """Write the class probabilities, as float16."""
    overlay: bool = False
    """Write a picture of the image with its mask, and one of its uncertainty."""
    threshold: float | None = None
    """Probability from which a pixel is foreground, for one output channel; by default the network's, 0.5."""
    precision: Literal["stored", "float32"] = "stored"
    """Compute as in training, or exactly."""

    def __post_init__(self):
        if isinstance(self.ensemble, (str, os.PathLike)):
            object.__setattr__(self, "ensemble", (self.ensemble,))
        check_tile(self.tile, self.overlap, self.margin)
        check_whole(self.mc_samples, "mc_samples", minimum=0)
        check_whole(self.seed, "seed", minimum=0)
        _check_choices(self)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"`threshold` must be in (0, 1), got threshold={self.threshold!r}.")
        if self.mc_rate is not None:
            check_rate(self.mc_rate, "mc_rate")
            if not self.mc_samples:
                raise InputError("`mc_rate` needs mc_samples.")

    @property
    def keeps_moments(self) -> bool:
        return self.uncertainty or self.mc_samples > 0


def check_rate(rate: float, name: str = "rate") -> float:
    """Return `rate` as a float, or raise InputError unless it is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise InputError(f"`{name}` must be a number in [0, 1), got {name}={rate!r}.")
    return float(rate)


def check_whole(value: int, name: str, minimum: int = 1) -> int:
    """Return `value` as an int, or raise InputError unless it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise InputError(f"`{name}` must be a whole number of at least {minimum}, got {name}={value!r}.")
    return int(value)


def check_tile(tile: int, overlap: int, margin: int = 0) -> None:
    """Raise InputError unless the tile, overlap and margin fit each other."""
    check_whole(tile, "tile", minimum=MULTIPLE)
    check_whole(overlap, "overlap", minimum=0)
    check_whole(margin, "margin", minimum=0)
    if tile % MULTIPLE or overlap % MULTIPLE:
        raise InputError(f"`tile` and `overlap` must be multiples of {MULTIPLE}, got tile={tile}, overlap={overlap}.")
    if overlap > tile // 2 or margin > overlap // 2:
        raise InputError(
            f"`overlap` must be at most half of tile={tile} and `margin` at most half of overlap, "
            f"got overlap={overlap}, margin={margin}."
        )


def _check_choices(options) -> None:
    """Raise InputError unless every field that is a choice holds one of its values."""
    for name, hint in typing.get_type_hints(type(options)).items():
        choices = _choices(hint)
        if choices and getattr(options, name) not in choices:
            known = ", ".join(str(choice) for choice in choices if choice is not None)
            raise InputError(f"`{name}` must be one of {known}, got {name}={getattr(options, name)!r}.")


def _is_finite(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _choices(hint) -> tuple:
    """The values that a `Literal` or `Literal | None` annotation allows; empty for any other."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    members = typing.get_args(hint)
    literals = [member for member in members if typing.get_origin(member) is Literal]
    return (*typing.get_args(literals[0]), None) if literals else ()


def _require_whole(config: TrainConfig, name: str, minimum: int) -> None:
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InputError(f"`{name}` must be a whole number of at least {minimum}, got {name}={value!r}.")


def default_run_dir(now) -> Path:
    """A folder under runs/ named after the time, that does not exist yet."""
    base = Path("runs", now.strftime("%Y%m%d-%H%M%S"))
    candidates = (base.with_name(f"{base.name}-{n}" if n else base.name) for n in range(1000))
    return next(path for path in candidates if not path.exists())
