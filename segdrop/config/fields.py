"""What the fields of a training may hold: choices, ranges, and how two of them are read together."""

import typing
from typing import Annotated, Literal

from ..conventions import MULTIPLE
from ..errors import InputError
from .checks import Rule, at_least, is_finite, is_whole, within

Loss = Literal["dice_ce", "dice", "focal", "tversky"]
CROSS_ENTROPIES = ("dice_ce", "focal")  # the losses that have one
SCALABLE = ("light", "medical", "microscopy")  # the presets of augmentation that do something
Kind = Literal["element", "spatial", "block", "path"]
Placement = Literal["between_convs", "branch_end", "block_end", "activations", "bottleneck", "skips", "layers"]
Schedule = Literal["constant", "ramp", "anneal", "warmup"]
Skips = Literal["clean", "dropped"]
DROPOUT_KINDS: tuple[str, ...] = typing.get_args(Kind)
PLACEMENTS: tuple[str, ...] = typing.get_args(Placement)
LIBRARY_RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
ENCODERS = (
    *LIBRARY_RESNETS,
    *(f"torchvision_{name}" for name in LIBRARY_RESNETS),
    *"vgg16 vgg19 densenet121 densenet169 densenet201 mobilenet mobilenetv2 inceptionv3 inceptionresnetv2".split(),
    *"seresnet18 seresnet34 seresnet50 seresnet101 seresnet152 resnext50 resnext101".split(),
    *"seresnext50 seresnext101 senet154".split(),
    *(f"efficientnetb{n}" for n in range(8)),
)
SKIPS: tuple[str, ...] = typing.get_args(Skips)
Auto = Literal["auto"]  # left to the plan, which is made from the data before training, or to the machine
Weights = Annotated[
    tuple[float, ...],
    Rule(
        "positive numbers, one for each class, background first",
        lambda values: isinstance(values, tuple) and len(values) > 1 and all(is_finite(v) and v > 0 for v in values),
    ),
]
Count = Annotated[int, at_least(1)]
_MOST_CROPS = 10_000_000  # of an epoch, whose order is drawn at once
Batch = Annotated[int, at_least(1), within("at most 16,384", lambda value: value <= 16_384)]
Crop = Annotated[
    int,
    at_least(32),
    within(f"a multiple of {MULTIPLE}", lambda value: value % MULTIPLE == 0),
    within("at most 16,384", lambda value: value <= 16_384),
]
Classes = Annotated[int, at_least(1), within("at most 255", lambda value: value <= 255)]
MaskValue = Annotated[int, Rule("in 0..255", lambda value: is_whole(value) and 0 <= value <= 255)]
Positive = Annotated[float, within("a positive number", lambda value: value > 0)]
Factor = Annotated[
    float, within("a positive number (freeze_epochs is what holds the encoder still)", lambda value: value > 0)
]
Millimetres = Annotated[float, within("a positive number of millimetres", lambda value: value > 0)]
Axis = Annotated[int, Rule("0, 1 or 2", lambda value: is_whole(value) and 0 <= value <= 2)]
Channels = Annotated[int, at_least(1), within("at most 512", lambda value: value <= 512)]  # as OpenCV takes them
Context = Annotated[int, at_least(0), within("at most 255", lambda value: value <= 255)]
ENCODER_RULE = Rule(
    f"one of {', '.join(ENCODERS)}, or keras:NAME of keras.applications",
    lambda value: isinstance(value, str) and (value in ENCODERS or value.startswith("keras:")),
)
Scale = Annotated[float, within("in (0, 4]", lambda value: 0 < value <= 4)]
Momentum = Annotated[float, within("in [0, 1)", lambda value: 0 <= value < 1)]
AtLeastZero = Annotated[float, within("a number of at least 0", lambda value: value >= 0)]
Probability = Annotated[float, within("in [0, 1]", lambda value: 0 <= value <= 1)]
Average = Annotated[float, within("in (0, 1)", lambda value: 0 < value < 1)]
Fraction = Annotated[float, within("in (0, 1]", lambda value: 0 < value <= 1)]
Third = Annotated[float, within("in (0, 1/3]", lambda value: 0 < value <= 1 / 3)]  # validation and test may both be cut


def resolve_kind(kind: str | None, spatial: bool, name: str = "kind") -> str | None:
    """The kind of dropout that `kind` and its shorthand `spatial` ask for together; None where they ask for none.

    Args:
        name: what the user calls the kind.

    Raises:
        InputError: the two contradict each other.
    """
    if spatial and kind not in (None, "spatial"):
        raise InputError(f"`spatial` contradicts {name}={kind!r}; give one of them.")
    return "spatial" if spatial else kind


def count_inputs(channels: int | None, context_slices: int) -> int:
    """Channels of what a network is given: those of the images, by default three; or a slice and its context."""
    return 2 * context_slices + 1 if context_slices else channels or 3


def check_regularisation(config) -> None:
    """Raise InputError unless what a TrainConfig says of loss, augmentation and mixed crops goes together."""
    if config.label_smoothing and config.loss not in CROSS_ENTROPIES:
        raise InputError(
            f"`label_smoothing` needs a loss with cross-entropy ({', '.join(CROSS_ENTROPIES)}), got "
            f"label_smoothing={config.label_smoothing} with loss={config.loss!r}."
        )
    if config.augment_strength != 1 and config.augment not in (*SCALABLE, "auto"):
        raise InputError(
            f"`augment_strength` needs a preset to scale ({', '.join(SCALABLE)}), got "
            f"augment_strength={config.augment_strength} with augment={config.augment!r}."
        )
    if config.mixup is not None and config.cutmix is not None:
        raise InputError(f"`cutmix` must be left out with mixup={config.mixup}, got cutmix={config.cutmix}.")
    for name in ("copy_paste", "mixup", "cutmix"):
        if getattr(config, name) and config.batch_size == 1:
            raise InputError(f"`{name}` needs a batch_size of at least 2, to take from another crop, got batch_size=1.")
    if config.ema is not None and config.gpus != "one":
        raise InputError(f"`ema` needs gpus='one', got ema={config.ema} with gpus={config.gpus!r}.")


def check_length(config) -> None:
    """Raise InputError unless what a TrainConfig says of steps, epochs and batches goes together."""
    steps, epochs, each, batch = config.steps, config.epochs, config.steps_per_epoch, config.batch_size
    if steps is not None and is_whole(epochs) and is_whole(each):
        total = epochs * each  # whole epochs, where the plan has chosen one of the two
        if not steps - max(epochs, each) < total <= steps:
            raise InputError(
                f"`steps` is {steps}, but {epochs} epochs of {each} steps are {total}; leave one of them out."
            )
    if is_whole(each) and is_whole(batch) and each * batch > _MOST_CROPS:
        raise InputError(
            f"`steps_per_epoch` must be at most {_MOST_CROPS // batch} with batch_size={batch}, got {each}; "
            "take more epochs."
        )
    if epochs != "auto" and config.freeze_epochs > epochs:
        raise InputError(f"`freeze_epochs` must be at most epochs={epochs}, got {config.freeze_epochs}.")
