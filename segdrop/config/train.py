"""What a training is told to do, and which values it takes."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from ..conventions import OVERLAPPING
from ..errors import InputError
from ..typed import fit
from .checks import Seed, at_least, check_fields, check_rate, is_finite
from .fields import (
    ENCODER_RULE,
    AtLeastZero,
    Auto,
    Average,
    Axis,
    Batch,
    Channels,
    Classes,
    Context,
    Count,
    Crop,
    Factor,
    Fraction,
    Kind,
    Loss,
    MaskValue,
    Millimetres,
    Momentum,
    Placement,
    Positive,
    Probability,
    Scale,
    Schedule,
    Skips,
    Third,
    Weights,
    check_length,
    check_regularisation,
    count_inputs,
    resolve_kind,
)
from .importing import reference_to

_PATHS = ("data", "run_dir", "augment", "encoder_weights", "init_from", "from_sweep")
_PERCENTILES = (0.5, 99.5)
# What is chosen from the data where it is "auto", and what it was in versions that did not choose.
_BEFORE = {
    "intensity": "dtype",
    "encoder": "resnet34",
    "encoder_lr": 1.0,
    "augment": "medical",
    "scale": 1.0,
    "crop_size": 128,
    "batch_size": 8,
    "steps_per_epoch": "images",
    "epochs": 30,
    "patience": 15,
}
PLANNED = tuple(name for name in _BEFORE if name != "intensity")  # by the plan; that, where the data are opened


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a ResNet U-Net with dropout in its encoder.

    Example:
        >>> config = segdrop.TrainConfig(data="data/cells", encoder_dropout=(0.05, 0.3), dropout_kind="block")
        >>> segdrop.TrainConfig.from_json(config.to_json()) == config
        True
        >>> segdrop.TrainConfig(crop_size=100)
        Traceback (most recent call last):
            ...
        segdrop.errors.InputError: `crop_size` must be a multiple of 32, or auto, got crop_size=100.
    """

    data: str = "data/cells"
    """Folder with images/ and masks/ (same stems) or in the layout of a public data set, or a CSV file with the columns
    image and mask."""
    images: str | None = None
    """Pattern of the images in the folder, 'a/*.tif', where its layout is not understood; goes with --masks."""
    masks: str | None = None
    """Pattern of their masks, 'b/*_manual1.gif': the wildcards stand for what an image and its mask have in common."""
    annotator: str | None = None
    """Whose masks to take where several people have annotated the images, by default the first one's."""
    run_dir: str | None = None
    """The run's own folder; by default a new one under runs/."""
    minutes: Positive = 15.0
    """What the training may take, by the plan's estimate, where neither --epochs nor --steps says how long it is."""
    steps: Count | None = None
    """Length of the training in steps, instead of --minutes."""
    epochs: Count | Auto = "auto"
    """Length of the training in epochs, each of which ends with a validation; auto: by --steps or --minutes, at most
    40 passes over the training images."""
    steps_per_epoch: Count | Literal["auto", "images"] = "auto"
    """Length of an epoch: auto: as many steps as have the training images' pixels; images: each image once."""
    batch_size: Batch | Auto = "auto"
    """Crops per training step; auto: 8, fewer where they are large or memory is small."""
    accumulate: Count = 1
    """Steps whose mean gradient moves the weights, for larger batches than memory holds; BatchNorm sees each alone."""
    checkpointing: bool = False
    """Take less memory: most maps are computed again for the gradient instead of being held. Steps take longer."""
    crop_size: Crop | Auto = "auto"
    """Height and width of the training crops in pixels, a multiple of 32; smaller images are padded. auto: by the size
    of the objects."""
    scale: Scale | Auto = "auto"
    """Factor that images and masks are enlarged by before anything else; predictions and scores are on the images' own
    grid. auto: 1, or less where a crop would not see an object's surroundings."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW, after warm-up and before cosine decay to zero."""
    weight_decay: AtLeastZero = 1e-4
    """What AdamW takes off the weights at each step, times the learning rate; not off biases and BatchNorm's."""
    ema: Average | None = None
    """Momentum of a moving average of the weights over the steps, 0.99, which is what is validated and kept; by default
    the weights themselves are."""
    encoder_lr: Factor | Auto = "auto"
    """Factor of the learning rate in the encoder, all training long; auto: 0.3 for pretrained weights, 1 for random
    ones."""
    loss: Loss = "dice_ce"
    """Dice plus cross-entropy, Dice, focal, or Tversky."""
    class_weights: Weights | Literal["none", "auto"] = "none"
    """Weights of the classes in the loss: none; auto: rare ones weigh more, by median-frequency balancing on the
    training images; or a number for each class, background first: 1 5."""
    label_smoothing: Momentum = 0.0
    """Share of a pixel's label in cross-entropy that is spread over all classes, 0.1; needs loss dice_ce or focal."""
    augment: str = "auto"
    """none, light, medical, microscopy, an Albumentations file (JSON or YAML); or auto: medical, or microscopy where an
    image has many objects."""
    augment_strength: AtLeastZero = 1.0
    """Factor of the preset's probabilities, and its square root that of the magnitudes: 0 is none, 2 is stronger; not
    for a file."""
    copy_paste: Probability = 0.0
    """Probability that objects of another crop of the batch are pasted onto a crop, with their mask."""
    mixup: Positive | None = None
    """Blend each crop with another of its batch, the share drawn from Beta(MIXUP, MIXUP), 0.2; the loss is blended,
    too."""
    cutmix: Positive | None = None
    """Replace a rectangle of each crop by another's of its batch, mask and all, its share drawn from
    Beta(CUTMIX, CUTMIX), 1.0."""
    seed: Seed = 0
    """Seed of split, initial weights, order, augmentation and dropout."""
    encoder: Annotated[str, ENCODER_RULE] | Auto = "auto"
    """The encoder: resnet18 to resnet152; torchvision_resnet18 to 152, which take weights trained with PyTorch; another
    of segmentation_models' (vgg16, densenet121, efficientnetb0, ...); or keras:NAME of keras.applications. auto: that
    of the file of weights or of --init-from, else resnet34."""
    encoder_weights: str = "auto"
    """imagenet; none (random); a weight file; a repository of the Hugging Face Hub (timm/resnet34.a1_in1k) for
    torchvision's; or auto: ImageNet if it can be had, else random with a warning."""
    init_from: str | None = None
    """A run's folder, or a .keras file, to start from the weights of; the encoder must be the same. The last
    convolution is a new one where the number of classes differs."""
    init_parts: Literal["both", "encoder", "decoder"] = "both"
    """What --init-from is for: encoder and decoder, or one of them."""
    encoder_dropout: float | dict[str, float] | tuple[float, float] = 0.0
    """Probability of dropping, 0 <= rate < 1; one per block: stage3=0.1,stage4=0.2; or a ramp over depth: 0.05..0.3."""
    spatial: bool = False
    """Drop whole feature maps: short for --dropout-kind spatial."""
    dropout_kind: Kind | None = None
    """What is dropped together: single values (default), whole feature maps, squares of maps, or a sample's branch."""
    dropout_block_size: Count | None = None
    """Side of the squares of --dropout-kind block in pixels of the feature map, by default 3."""
    dropout_shared: bool = False
    """Drop the same in all samples of a batch."""
    dropout_layer: str | None = None
    """A layer of your own instead of a kind, module:Class, installed or in the current folder."""
    dropout_blocks: tuple[str, ...] | None = None
    """Stages, units, layers or globs, comma-separated; by default stage3 and stage4 without the last unit."""
    dropout_placement: Placement = "between_convs"
    """Where: in the chosen units before the last convolution, at the end of the residual branch, after the addition, or
    after every activation; or after the encoder's last activation; on the skips; or after layers named as blocks."""
    dropout_schedule: Schedule = "constant"
    """How rates change: not at all; rise from 0; fall to 0; or are 0 at first."""
    dropout_schedule_epochs: Count | None = None
    """Epochs that the schedule's change takes, by default half of all."""
    skips: Skips | None = None
    """Whether the decoder receives a skip as it was before dropout (clean, unless the placement is skips)."""
    bn_momentum: Momentum = 0.9
    """Momentum of BatchNorm's moving statistics: 0.99, Keras's default, lags by more steps than a small set has."""
    recalibrate_batchnorm: bool = False
    """Re-estimate BatchNorm's statistics with dropout off after training; kept if validation Dice does not fall."""
    rebase_batchnorm: bool = False
    """Before training, give the encoder's BatchNorms the statistics of an epoch of training crops, and take up the
    difference in scale and shift, so that the network computes what it did."""
    freeze_epochs: Annotated[int, at_least(0)] = 0
    """Epochs at the start in which the encoder is frozen, BatchNorm included."""
    classes: Classes | None = None
    """Number of classes counting the background, except 1: binary. By default from the data set."""
    multilabel: bool = False
    """Classes overlap: each pixel may be of several or of none. Masks lie in a folder for each class (masks/disc/)."""
    ignore_value: MaskValue | None = None
    """Mask value of pixels that are neither trained on nor scored."""
    intensity: Literal["auto", "dtype", "percentiles", "window"] = "auto"
    """What becomes 0..255: the range of the integer type, that between two percentiles of an image, or a window; auto:
    percentiles where images of more than 8 bits use less than a quarter of their type's range, or it has none."""
    intensity_percentiles: tuple[float, float] = _PERCENTILES
    """The two percentiles of --intensity percentiles, of an image or a whole volume."""
    intensity_window: tuple[float, float] | None = None
    """Lowest and highest value of --intensity window, in the files' values; by default each file's own window."""
    spacing: Millimetres | None = None
    """Millimetres per pixel that all images are resampled to; by default they stay as they are."""
    slice_axis: Axis = 2
    """Axis (0, 1 or 2) along which NIfTI volumes are cut into slices."""
    channels: Channels | None = None
    """Channels of the images, 1: grey, as they are stored; by default RGB, with grey repeated to three channels."""
    context_slices: Context = 0
    """Slices of a grey volume before and after each slice that the network is given as channels beside it."""
    stratify: str | None = None
    """Column of a CSV file of the data set to balance the split by."""
    val_fraction: Third = 0.15
    """Share of the images cut off for each split that the data set does not give."""
    train_fraction: Fraction = 1.0
    """Share of the training images that are used, whole groups of each stratum; smaller shares lie within larger."""
    patience: Count | Auto = "auto"
    """Stop after this many epochs without a better validation Dice; auto: half of all, at least 15."""
    stop_after: Count | None = None
    """Stop after this many epochs of the learning rate's course over all --epochs."""
    from_sweep: str | None = None
    """Folder of a finished sweep: train on the images of all its folds, without validation; the last epoch is kept."""
    cache_mb: Annotated[int, at_least(0)] = 2048
    """Memory for decoded images in MiB; what does not fit is read from disk."""
    mixed_precision: Literal["off", "float16", "bfloat16", "auto"] = "auto"
    """Compute dtype; auto: float16 on a GPU with tensor cores, bfloat16 on a CPU that computes in it, else off."""
    deterministic: Literal["auto", "on", "off"] = "auto"
    """Whether the same training comes out the same to the last bit, which takes longer; auto: on a CPU, not a GPU."""
    gpus: Literal["one", "all"] = "one"
    """Train on one GPU, or divide each batch among all there are."""
    augment_workers: Annotated[int, at_least(0)] | Auto = "auto"
    """Processes that augment, 0: threads of the training's; auto: on a GPU one for each core but one, at most 16."""
    resume: bool = False
    """Continue the run in --run-dir after its last finished epoch."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self):
        for name in (*_PATHS, "images", "masks", "annotator"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if isinstance(self.class_weights, list):  # as JSON writes it
            object.__setattr__(self, "class_weights", tuple(self.class_weights))
        if self.dropout_layer is not None:
            object.__setattr__(self, "dropout_layer", reference_to(self.dropout_layer, "dropout_layer"))
        check_fields(self)
        self._check_intensity()
        self._check_dropout()
        check_regularisation(self)
        for given, lacking in (("images", "masks"), ("masks", "images")):
            if getattr(self, given) is not None and getattr(self, lacking) is None:
                raise InputError(f"`{given}` needs {lacking}, the pattern of the other files, got {given} alone.")
        if self.multilabel and self.classes is not None and not 2 < self.classes <= OVERLAPPING + 1:
            raise InputError(
                f"`classes` must be 3 to {OVERLAPPING + 1} with multilabel, the background and those that overlap, "
                f"got classes={self.classes}."
            )
        if self.init_from is None and self.init_parts != "both":
            raise InputError(f"`init_parts` needs init_from, the run to start from, got {self.init_parts!r} alone.")
        if self.encoder_from_run and self.encoder_weights != "auto":
            raise InputError(
                f"`encoder_weights` is {self.encoder_weights!r}, but the encoder's weights come from "
                f"init_from={self.init_from!r}; leave one of them out, or take init_parts='decoder'."
            )
        if self.context_slices and self.channels not in (None, self.input_channels):
            raise InputError(
                f"`channels` must be {self.input_channels} with context_slices={self.context_slices}, or left out, "
                f"got channels={self.channels}."
            )
        check_length(self)
        asked = {"accumulate": self.accumulate > 1, "checkpointing": self.checkpointing}
        for name in (name for name in asked if asked[name] and self.gpus != "one"):
            raise InputError(f"`{name}` needs gpus='one', got {name}={getattr(self, name)} with gpus={self.gpus!r}.")
        if self.from_sweep and self.recalibrate_batchnorm:
            raise InputError(
                "`recalibrate_batchnorm` needs validation images, of which a training with from_sweep has none; "
                "leave it out."
            )
        if self.resume and self.run_dir is None:
            raise InputError("`resume` needs run_dir, the folder of the run to continue.")

    @property
    def kind(self) -> str | None:
        """The kind of dropout, whichever of the two options says it; None for a layer of the user's own."""
        kind = resolve_kind(self.dropout_kind, self.spatial, "dropout_kind")
        return kind or (None if self.dropout_layer else "element")

    @property
    def encoder_from_run(self) -> bool:
        """Whether the encoder starts from the weights of an earlier run."""
        return self.init_from is not None and self.init_parts != "decoder"

    @property
    def input_channels(self) -> int:
        """Channels of what the network is given."""
        return count_inputs(self.channels, self.context_slices)

    @property
    def has_colours(self) -> bool:
        """Whether the images are taken for RGB or grey, and not for channels of another meaning."""
        return self.channels in (None, 1) and not self.context_slices

    @property
    def rates(self) -> list[float]:
        """The rates that `encoder_dropout` names."""
        rates = self.encoder_dropout
        return list(rates.values() if isinstance(rates, dict) else rates if isinstance(rates, tuple) else [rates])

    def _check_dropout(self) -> None:
        if isinstance(self.dropout_blocks, (list, str)):  # as JSON and callers in a hurry write it
            blocks = self.dropout_blocks.split(",") if isinstance(self.dropout_blocks, str) else self.dropout_blocks
            object.__setattr__(self, "dropout_blocks", tuple(blocks))
        if isinstance(self.encoder_dropout, list):  # as JSON writes it
            object.__setattr__(self, "encoder_dropout", tuple(self.encoder_dropout))
        if isinstance(self.encoder_dropout, tuple) and len(self.encoder_dropout) != 2:
            raise InputError(
                f"`encoder_dropout` as a ramp has two rates, got encoder_dropout={self.encoder_dropout!r}."
            )
        for rate in self.rates:
            check_rate(rate, "encoder_dropout")
        if self.dropout_schedule == "constant" and self.dropout_schedule_epochs is not None:
            raise InputError("`dropout_schedule_epochs` needs a dropout_schedule other than constant.")
        if self.dropout_schedule != "constant" and not any(self.rates):
            raise InputError(f"`dropout_schedule` {self.dropout_schedule} needs an encoder_dropout above 0.")
        if self.dropout_block_size is not None and self.dropout_kind != "block":
            raise InputError(f"`dropout_block_size` needs dropout_kind='block', got {self.dropout_kind!r}.")
        resolve_kind(self.dropout_kind, self.spatial, "dropout_kind")
        if self.dropout_layer is not None:
            others = {
                "spatial": self.spatial,
                "dropout_kind": self.dropout_kind,
                "dropout_shared": self.dropout_shared,
                "dropout_schedule": self.dropout_schedule != "constant",
            }
            for name in (name for name, given in others.items() if given):
                raise InputError(
                    f"`{name}` is not for a dropout_layer, which decides itself what it drops and keeps its rate; "
                    "leave one of them out."
                )

    def _check_intensity(self) -> None:
        for name in ("intensity_percentiles", "intensity_window"):
            pair = getattr(self, name)
            if pair is None and name == "intensity_window":
                continue
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(is_finite, pair)):
                raise InputError(f"`{name}` must be two numbers, got {name}={pair!r}.")
            if not pair[0] < pair[1]:
                raise InputError(f"`{name}` must rise from low to high, got {name}={pair!r}.")
            object.__setattr__(self, name, tuple(map(float, pair)))  # JSON writes lists
        low, high = self.intensity_percentiles
        if not 0 <= low < high <= 100:
            raise InputError(f"`intensity_percentiles` must be in [0, 100], got {self.intensity_percentiles!r}.")
        if self.intensity_percentiles != _PERCENTILES and self.intensity != "percentiles":
            raise InputError(f"`intensity_percentiles` needs intensity='percentiles', got {self.intensity!r}.")
        if self.intensity_window is not None and self.intensity != "window":
            raise InputError(f"`intensity_window` needs intensity='window', got {self.intensity!r}.")

    @property
    def planned(self) -> bool:
        """Whether nothing is left to the plan."""
        return all(getattr(self, name) != "auto" for name in PLANNED)

    def to_json(self) -> dict:
        """A JSON-ready dict that `TrainConfig.from_json` turns back into an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping) -> "TrainConfig":
        """The configuration that a run or a sweep has stored; what its version had no option for is as it was then.

        Example:
            >>> segdrop.TrainConfig.from_json({"data": "data/cells", "crop_size": 96}).scale
            1.0
        """
        return fit(cls, cls.upgraded(stored), "The stored configuration")

    @staticmethod
    def upgraded(stored: Mapping) -> dict:
        """What a version has stored, with what it had no option for as it was then; percentiles that took no part are
        left out."""
        unused = stored.get("intensity", "dtype") != "percentiles"
        return {**_BEFORE, **stored, **({"intensity_percentiles": _PERCENTILES} if unused else {})}

    def continuing(self, stored: "TrainConfig") -> "TrainConfig":
        """This configuration for going on with what `stored` began: "auto" is what was chosen then."""
        chosen = {name: getattr(stored, name) for name in _BEFORE if getattr(self, name) == "auto"}
        return dataclasses.replace(self, **chosen)


def default_run_dir(now) -> Path:
    """A folder under runs/ named after the time, that does not exist yet."""
    base = Path("runs", now.strftime("%Y%m%d-%H%M%S"))
    candidates = (base.with_name(f"{base.name}-{n}" if n else base.name) for n in range(1000))
    return next(path for path in candidates if not path.exists())
