"""The plan: what a configuration leaves to "auto", chosen from the data by the rules of docs/plan.md."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.train import TrainConfig
from ..conventions import MULTIPLE
from ..data.batches import steps_per_epoch
from ..data.dataset import Dataset
from ..data.fingerprint import Fingerprint, fingerprint
from ..data.tiles import padded
from ..errors import InputError
from ..folders.run import CONFIG, open_run
from ..images.resampling import scaled_size
from ..nets.checkpoints import SUFFIXES, encoder_of_file
from ..nets.hub import hub_file, is_repository
from .building import find_weights
from .device import Machine

SURROUNDINGS = 3  # a crop sees so many times the thickness of a large object,
LARGE = 0.75  # one that a quarter of its class's area is in thicker ones than
DETAIL, THIN = 3, 0.1  # pixels that remain of the width that a tenth of a class's area is thinner than
WHOLE = 0.8  # images that would hardly become smaller stay as they are
SMALLEST_CROP, LARGEST_CROP = 128, {"CPU": 192, "GPU": 512}
DETAILED_CROP = {"CPU": 256, "GPU": 512}  # the largest one where there is time for more than `PASSES`
BATCH, BATCH_PIXELS = {"CPU": 8, "GPU": 16}, {"CPU": 8 * 192**2, "GPU": 16 * 256**2}
PIXEL_BYTES = 8192  # of memory for each pixel of a batch
MANY = 8  # objects in an image, from which on they are taken to lie in any direction
PRETRAINED_RATE = 0.3  # of the encoder, as a factor of the decoder's
PASSES = 40  # over the pixels of the training images, at most
FEWEST_EPOCHS, MOST_EPOCHS, FEWEST_STEPS, FEWEST_PATIENCE = 10, 40, 10, 15
TRAINING, AFTER_EPOCHS = 0.9, 0.2  # shares of the time: before the last scores; at most for what follows the epochs,
WRITING = 2.0  # validation and, for so many seconds each time, writing the state, the model and TensorBoard's pictures
# Multiply-adds of the U-Net on an encoder, relative to that on resnet34; counted at 128 x 128 pixels.
WORK = {"18": 0.7, "34": 1.0, "50": 1.4, "101": 2.0, "152": 2.6, "vgg": 3.2, "mobile": 0.6, "efficientnetb": 0.8}
OTHER_WORK, PREDICTION = 1.2, 1 / 3  # of an encoder that is not listed; of a prediction relative to a training step


@dataclass(frozen=True)
class Choice:
    """What the plan has chosen for a field, and why in a few words."""

    field: str
    value: object
    reason: str


@dataclass(frozen=True)
class Plan:
    """A configuration of which nothing is left open, and what was chosen for it.

    Attributes:
        config: the configuration.
        choices: one for each field that was "auto".
        seconds: what the training takes by the rules' estimate.
        weights: of the encoder, as `building.find_weights` tells them; None where no rule had to know.
    """

    config: TrainConfig
    choices: tuple[Choice, ...]
    seconds: float
    weights: str | None = None

    def to_json(self) -> dict:
        """A JSON-ready dict for the run's record."""
        return {
            "seconds": round(self.seconds),
            "choices": {choice.field: {"value": choice.value, "reason": choice.reason} for choice in self.choices},
        }


@dataclass(frozen=True)
class _Facts:
    """What the rules look at: the images at their own size, and the machine."""

    dataset: Dataset
    train: np.ndarray
    val: np.ndarray
    machine: Machine
    weights: str | None  # of the encoder, found where its learning rate is open

    @functools.cached_property
    def masks(self) -> Fingerprint:
        """What is in the training images; read where a rule needs it."""
        return fingerprint(self.dataset, self.train)


def make_plan(
    config: TrainConfig, dataset: Dataset, train: Sequence[int], val: Sequence[int], machine: Machine
) -> Plan:
    """Choose what `config` leaves to "auto", for the training images `train` and the validation images `val`.

    What is given stands, and what is chosen depends on nothing but the arguments.

    Raises:
        InputError: the time is too short for a training or the memory for a crop, or the encoder cannot be told.

    Example:
        >>> from segdrop.data.opening import open_dataset as open
        >>> dataset, machine = open("data/cells"), segdrop.training.device.Machine("CPU", speed=3e5, memory=8e9)
        >>> given = segdrop.TrainConfig(encoder_weights="none")
        >>> config = make_plan(given, dataset, range(64), range(64, 80), machine).config
        >>> config.scale, config.crop_size, config.batch_size, config.steps_per_epoch, config.epochs
        (1.0, 128, 8, 26, 12)
    """
    choices = list(_encoder(config))
    config = _with(config, choices)
    weights = find_weights(config) if config.encoder_lr == "auto" else None
    facts = _Facts(dataset.scaled(1), np.asarray(train, int), np.asarray(val, int), machine, weights)
    for rule in (_encoder_rate, _view, _augmentation, _batch, _length, _patience):
        for choice in rule(config, facts):
            choices.append(choice)
            config = _with(config, [choice])
    if config.accumulate > (steps := int(config.epochs) * _steps(config, facts)):
        raise InputError(
            f"`accumulate` must be at most the {steps} steps of the training, for the weights to move at all, got "
            f"accumulate={config.accumulate}."
        )
    return Plan(config, tuple(choices), _seconds(config, facts), weights)


def _with(config: TrainConfig, choices: Sequence[Choice]) -> TrainConfig:
    return dataclasses.replace(config, **{choice.field: choice.value for choice in choices})


def _encoder(config: TrainConfig) -> Iterator[Choice]:
    """That of the weights, so that they need not be told twice."""
    if config.encoder != "auto":
        return
    weights = config.encoder_weights
    if config.encoder_from_run and (Path(str(config.init_from)) / CONFIG).is_file():
        yield Choice("encoder", open_run(str(config.init_from)).config.encoder, "that of --init-from")
    elif is_repository(weights) and not Path(weights).exists():
        yield Choice("encoder", encoder_of_file(hub_file(weights)), f"that of {weights}")
    elif Path(weights).suffix in SUFFIXES:
        yield Choice("encoder", encoder_of_file(Path(weights)), f"that of {Path(weights).name}")
    else:
        yield Choice("encoder", "resnet34", "the default")


def _encoder_rate(config: TrainConfig, facts: _Facts) -> Iterator[Choice]:
    """What is pretrained is changed less than what is new."""
    if config.encoder_lr != "auto":
        return
    if facts.weights == "random":
        yield Choice("encoder_lr", 1.0, "its weights are random")
    else:
        yield Choice("encoder_lr", PRETRAINED_RATE, "its weights are pretrained")


def _view(config: TrainConfig, facts: _Facts) -> Iterator[Choice]:
    """How much of an image a crop shows, and in how many pixels."""
    if "auto" not in (config.scale, config.crop_size):
        return
    longest = float(np.median(facts.dataset.sizes[facts.train].max(axis=1)))
    objects = [found for found in facts.masks.objects if len(found)]
    thick = max((_quantile(found.thicknesses, found.areas, LARGE) for found in objects), default=0.0)
    width = min((_quantile(found.widths, found.areas, THIN) for found in objects), default=math.inf)
    view = min(max(SURROUNDINGS * thick, SMALLEST_CROP), longest)
    largest = LARGEST_CROP[facts.machine.kind]
    scale = config.scale
    if scale == "auto":
        seen = _affordable_side(config, facts, view)
        largest, wanted = max(largest, seen), min(seen / view, 1.0)
        detail = min(DETAIL / width, 1.0)
        scale, why = max(wanted, detail), f"a crop shows {view:.0f} px, {SURROUNDINGS} large objects"
        if view == longest:
            why = "a crop shows a whole image"
        if detail > wanted:
            why = f"lines of {width:.0f} px keep {DETAIL}"
        if config.crop_size != "auto":
            scale, why = 1.0, "--crop-size is in the images' own pixels"
        elif scale >= WHOLE:
            scale, why = 1.0, f"large objects are {thick:.0f} px thick" if objects else "there are no objects"
        scale = round(scale, 2)
        yield Choice("scale", scale, why)
    if config.crop_size == "auto":
        room = padded(int(scaled_size([longest], scale)[0]))
        side = min(_side(view * scale, largest), room)
        yield Choice("crop_size", side, "a whole image" if side >= room else f"{side / scale:.0f} px of an image")


def _affordable_side(config: TrainConfig, facts: _Facts, view: float) -> int:
    """The side of a crop that shows `view` pixels in at least half as many, and in more where there is time for it."""
    kind = facts.machine.kind
    side = _side(view / 2, LARGEST_CROP[kind])
    if (config.steps, config.epochs, config.steps_per_epoch) != (None, "auto", "auto"):
        return side
    pixels = _training_time(config) * facts.machine.speed / _work(str(config.encoder))
    for larger in range(side + MULTIPLE, _side(view, DETAILED_CROP[kind]) + 1, MULTIPLE):
        if PASSES * larger**2 * _crops(facts, min(larger / view, 1.0), larger) <= pixels:
            side = larger
    return side


def _side(pixels: float, largest: int) -> int:
    """The side of a crop nearest to so many pixels."""
    return int(min(max(round(pixels / MULTIPLE) * MULTIPLE, SMALLEST_CROP), largest))


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The value that has the share `share` of the weights at or below it."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, share * below[-1])])


def _augmentation(config: TrainConfig, facts: _Facts) -> Iterator[Choice]:
    if config.augment != "auto":
        return
    count = sum(len(found) for found in facts.masks.objects) / max(len(facts.train), 1)
    if count >= MANY:
        yield Choice("augment", "microscopy", f"{count:.0f} objects an image, in any direction")
    else:
        yield Choice("augment", "medical", f"only {count:.1f} objects an image")


def _batch(config: TrainConfig, facts: _Facts) -> Iterator[Choice]:
    if config.batch_size != "auto":
        return
    machine, pixels = facts.machine, int(config.crop_size) ** 2
    room = int(machine.memory / 2 / PIXEL_BYTES // pixels)
    if not room:
        raise InputError(
            f"`crop_size` {config.crop_size} needs about {pixels * PIXEL_BYTES / 1e9:.1f} GB for one crop, half of the "
            f"memory is {machine.memory / 2e9:.1f} GB; give a smaller one, or --batch-size 1 to try it."
        )
    wanted = BATCH[machine.kind]
    size = min(wanted, max(BATCH_PIXELS[machine.kind] // pixels, 2), room)
    reason = "the usual" if size == wanted else "what fits into memory" if size == room else "crops are large"
    yield Choice("batch_size", size * machine.devices, reason + f", on {machine.devices} GPUs" * (machine.devices > 1))


def _length(config: TrainConfig, facts: _Facts) -> Iterator[Choice]:
    """Steps of an epoch, and epochs."""
    if "auto" not in (config.epochs, config.steps_per_epoch):
        return
    a_pass = _steps_of_a_pass(config, facts)
    total, why = _total_steps(config, facts, a_pass)
    if config.epochs != "auto":
        if config.steps is not None and config.steps < config.epochs:
            raise InputError(f"`steps` must be at least epochs={config.epochs}, got steps={config.steps}.")
        if config.steps is not None:
            yield Choice("steps_per_epoch", config.steps // config.epochs, "--steps in --epochs")
        else:
            yield Choice("steps_per_epoch", a_pass, "the training images' pixels once")
        return
    if config.steps_per_epoch == "images":
        each = steps_per_epoch(len(facts.train), int(config.batch_size))
        yield Choice("epochs", max(total // each, 1), why)
    elif config.steps_per_epoch != "auto":
        yield Choice("epochs", max(total // config.steps_per_epoch, 1), why)
    else:
        affordable = AFTER_EPOCHS * total * _step_seconds(config, facts) / _seconds_after_epoch(config, facts)
        most = min(MOST_EPOCHS, max(FEWEST_EPOCHS, int(affordable)), total)
        epochs = min(max(round(total / a_pass), min(FEWEST_EPOCHS, most)), most)
        each = total // epochs
        yield Choice("steps_per_epoch", each, f"{each / a_pass:.1f} times the training images' pixels")
        yield Choice("epochs", epochs, why)


def _steps_of_a_pass(config: TrainConfig, facts: _Facts) -> int:
    """Steps that have as many pixels as the training images, each of which counts as one crop at least."""
    crops = _crops(facts, float(config.scale), int(config.crop_size))
    return max(math.ceil(crops / int(config.batch_size)), 1)


def _crops(facts: _Facts, scale: float, side: int) -> float:
    sizes = scaled_size(facts.dataset.sizes[facts.train], scale)
    return float(np.maximum(sizes.prod(axis=1) / side**2, 1).sum())


def _training_time(config: TrainConfig) -> float:
    """Seconds of the budget that are for training steps."""
    return TRAINING * (1 - AFTER_EPOCHS / 2) * 60 * config.minutes


def _total_steps(config: TrainConfig, facts: _Facts, a_pass: int) -> tuple[int, str]:
    """Steps of the whole training, and what they are by."""
    if config.steps is not None:
        return config.steps, "--steps"
    steps = int(_training_time(config) / _step_seconds(config, facts))
    if steps < FEWEST_STEPS and config.epochs == "auto":
        raise InputError(
            f"`minutes` {config.minutes:g} is time for {steps} steps of {_step_seconds(config, facts):.1f} s by the "
            "plan's estimate, which is no training; give more, or say with --steps how many."
        )
    most = PASSES * a_pass
    return (most, f"{PASSES} passes are enough") if most <= steps else (steps, f"what {config.minutes:g} minutes allow")


def _patience(config: TrainConfig, facts: _Facts) -> Iterator[Choice]:
    if config.patience == "auto":
        half = -(-int(config.epochs) // 2)
        yield Choice(
            "patience", max(half, FEWEST_PATIENCE), "half of the epochs" if half >= FEWEST_PATIENCE else "the least"
        )


def _seconds(config: TrainConfig, facts: _Facts) -> float:
    steps = _steps(config, facts)
    return int(config.epochs) * (steps * _step_seconds(config, facts) + _seconds_after_epoch(config, facts))


def _steps(config: TrainConfig, facts: _Facts) -> int:
    """Of an epoch."""
    each = config.steps_per_epoch
    return steps_per_epoch(len(facts.train), int(config.batch_size)) if each == "images" else int(each)


def _step_seconds(config: TrainConfig, facts: _Facts) -> float:
    pixels = int(config.batch_size) * int(config.crop_size) ** 2
    return pixels * _work(str(config.encoder)) / facts.machine.speed


def _seconds_after_epoch(config: TrainConfig, facts: _Facts) -> float:
    pixels = scaled_size(facts.dataset.sizes[facts.val], float(config.scale)).prod(axis=1).sum()
    return WRITING + float(pixels) * _work(str(config.encoder)) * PREDICTION / facts.machine.speed


def _work(encoder: str) -> float:
    return next((work for name, work in WORK.items() if name in encoder), OTHER_WORK)
