"""The configuration of a training run: one frozen dataclass, from which the command line is made."""

import dataclasses
import math
import os
import typing
from pathlib import Path
from typing import Literal

from .errors import InputError


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
    encoder_dropout: float | dict[str, float] = 0.0
    """Probability of dropping, 0 <= rate < 1; or one per block: stage3=0.1,stage4=0.2."""
    spatial: bool = False
    """Drop whole feature maps: short for --dropout-kind spatial."""
    dropout_kind: Literal["element", "spatial"] | None = None
    """What is dropped together: single values (default) or whole feature maps."""
    dropout_blocks: tuple[str, ...] | None = None
    """Stages, units or globs, comma-separated; by default stage3 and stage4 without the last unit."""
    dropout_placement: Literal["between_convs", "block_end"] = "between_convs"
    """Where in a unit: before its last convolution, or after its addition."""
    skips: Literal["clean", "dropped"] = "clean"
    """Whether the decoder receives a skip as it was before dropout."""
    bn_momentum: float = 0.9
    """Momentum of BatchNorm's moving statistics: 0.99, Keras's default, lags by more steps than a small set has."""
    freeze_epochs: int = 0
    """Epochs at the start in which the encoder is frozen, BatchNorm included."""
    classes: int | None = None
    """Number of classes counting the background, except 1: binary. By default from the data set."""
    ignore_value: int | None = None
    """Mask value of pixels that are neither trained on nor scored."""
    stratify: str | None = None
    """Column of a CSV file of the data set to balance the split by."""
    val_fraction: float = 0.15
    """Share of the images cut off for each split that the data set does not give."""
    patience: int = 15
    """Stop after this many epochs without a better validation Dice."""
    cache_mb: int = 2048
    """Memory for decoded images in MiB; what does not fit is read from disk."""
    mixed_precision: Literal["off", "float16", "bfloat16", "auto"] = "auto"
    """Compute dtype; auto: float16 on a GPU with tensor cores, bfloat16 on a CPU that computes in it, else off."""
    resume: bool = False
    """Continue the run in --run-dir after its last finished epoch."""

    def __post_init__(self):
        for name in ("data", "run_dir", "augment", "encoder_weights"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
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
        if not 0 <= self.bn_momentum < 1:
            raise InputError(f"`bn_momentum` must be in [0, 1), got bn_momentum={self.bn_momentum!r}.")
        if not 0 < self.val_fraction <= 1 / 3:  # validation and test may both be cut
            raise InputError(f"`val_fraction` must be in (0, 1/3], got val_fraction={self.val_fraction!r}.")
        if self.classes is not None:
            _require_whole(self, "classes", minimum=1)
            if self.classes > 255:
                raise InputError(f"`classes` must be at most 255, got classes={self.classes}.")
        if self.ignore_value is not None and not 0 <= self.ignore_value <= 255:
            raise InputError(f"`ignore_value` must be in 0..255, got ignore_value={self.ignore_value!r}.")
        if self.freeze_epochs > self.epochs:
            raise InputError(f"`freeze_epochs` must be at most epochs={self.epochs}, got {self.freeze_epochs}.")
        if isinstance(self.dropout_blocks, (list, str)):  # as JSON and callers in a hurry write it
            blocks = self.dropout_blocks.split(",") if isinstance(self.dropout_blocks, str) else self.dropout_blocks
            object.__setattr__(self, "dropout_blocks", tuple(blocks))
        for name, hint in typing.get_type_hints(type(self)).items():
            choices = _choices(hint)
            if choices and getattr(self, name) not in choices:
                known = ", ".join(str(choice) for choice in choices if choice is not None)
                raise InputError(f"`{name}` must be one of {known}, got {name}={getattr(self, name)!r}.")
        rates = self.encoder_dropout.values() if isinstance(self.encoder_dropout, dict) else [self.encoder_dropout]
        for rate in rates:
            check_rate(rate, "encoder_dropout")
        if self.spatial and self.dropout_kind not in (None, "spatial"):
            raise InputError(f"`spatial` contradicts dropout_kind={self.dropout_kind!r}; give one of them.")
        if self.resume and self.run_dir is None:
            raise InputError("`resume` needs run_dir, the folder of the run to continue.")

    def to_json(self) -> dict:
        """A JSON-ready dict that `TrainConfig(**d)` turns back into an equal configuration."""
        return dataclasses.asdict(self)


def check_rate(rate: float, name: str = "rate") -> float:
    """Return `rate` as a float, or raise InputError unless it is a number in [0, 1)."""
    if isinstance(rate, (bool, str)) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise InputError(f"`{name}` must be a number in [0, 1), got {name}={rate!r}.")
    return float(rate)


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
