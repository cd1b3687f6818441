"""What segdrop's files hold, each as a type, against which it is read."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from typing_extensions import NotRequired, TypedDict  # typing's own cannot be checked before Python 3.12

from ..typed import open_ended

Score = float | None  # None where it is undefined
Pair = tuple[Score, Score] | None


@open_ended
class Bin(TypedDict):
    """A bin of a reliability diagram."""

    low: float
    high: float
    count: int
    confidence: Score
    accuracy: Score


@open_ended
class Calibration(TypedDict):
    """How right a network is where it is how sure."""

    ece: Score
    ece_foreground: Score
    brier: Score
    reliability: NotRequired[dict[str, list[Bin] | None] | None]


@open_ended
class Detection(TypedDict, total=False):
    """How well an uncertainty finds errors."""

    auroc_pixels: Score
    aurc_pixels: Score
    auroc_images: Score
    aurc_images: Score
    spearman_images: Score
    risk_coverage: list[tuple[float, float]] | None


@open_ended
class Uncertainty(TypedDict):
    """The scores of the samples' mean."""

    samples: int
    networks: NotRequired[int]
    seed: NotRequired[int]
    dice: Score
    iou: Score
    calibration: Calibration
    scores: dict[str, Detection]


@open_ended
class Tuned(TypedDict):
    """The scores at another threshold."""

    threshold: float
    dice: Score
    iou: Score


_OF_CLASS = ("dice", "iou", "precision", "recall", "dice_per_image", "iou_per_image", "dice_per_case", "hd95")
_OF_CLASS += ("surface_dice",)
ClassScores = open_ended(
    TypedDict(
        "ClassScores",
        {**dict.fromkeys(_OF_CLASS, Score), **{f"{key}_interval": Pair for key in _OF_CLASS}}
        | dict.fromkeys(("images_undefined", "hd95_undefined", "surface_dice_undefined"), int | None),
        total=False,
    )
)


@open_ended
class Scores(TypedDict):
    """A result of `evaluate`, as metrics.json has it under the name of a split."""

    images: int
    groups: NotRequired[int | None]
    dice: Score
    iou: Score
    dice_interval: NotRequired[Pair]
    iou_interval: NotRequired[Pair]
    classes: dict[str, ClassScores]
    distance_unit: NotRequired[Literal["mm", "px"]]
    surface_tolerance: NotRequired[float]
    calibration: NotRequired[Calibration]
    calibration_before: NotRequired[Calibration]
    error_detection: NotRequired[dict[str, Detection]]
    uncertainty: NotRequired[Uncertainty]
    tuned: NotRequired[Tuned | None]
    tuned_threshold: NotRequired[float | None]
    warning: NotRequired[str]


@open_ended
class FittedTemperature(TypedDict):
    """What a run's probabilities are tempered by; see `scoring.temperature.Temperature`."""

    value: Annotated[float, Gt(0)]
    nll_before: float
    nll_after: float
    pixels: int


@open_ended
class Recalibration(TypedDict):
    """What re-estimating BatchNorm's statistics has changed."""

    val_dice_before: Score
    val_dice_after: Score
    kept: bool


@open_ended
class Choice(TypedDict):
    """What a plan has chosen for an option, and why."""

    value: Any
    reason: str


@open_ended
class Plan(TypedDict):
    """What was chosen from the data."""

    seconds: float
    choices: dict[str, Choice]


@open_ended
class WeightsFile(TypedDict):
    """What was loaded into an encoder; see `nets.checkpoints.Loaded`."""

    file: str
    sha256: str
    tensors: int
    left_out: list[str]
    revision: NotRequired[str | None]


@open_ended
class StartFile(TypedDict):
    """What a network has from an earlier one; see `nets.transfer.Transferred`."""

    file: str
    sha256: str
    parts: str
    layers: int
    new: list[str]


@open_ended
class Chosen(TypedDict):
    """A sweep's chosen arm, chosen.json: its name, what it changes, how long to train it, and its runs' folders."""

    arm: str
    changes: dict[str, Any]
    seed: int
    stop_after: int
    best_epochs: list[int]
    trainings: list[str]


@open_ended
class HeldOutScores(Scores):
    """The chosen arm's scores on the test images, test.json."""

    what: str
    arm: str
    runs: list[str]


@open_ended
class FoldScores(TypedDict):
    """The scores of a sweep's training, kept with its trial."""

    dice: Score
    iou: Score
    ece: Score
    ece_foreground: Score
    brier: Score
    train_dice: Score
    constant_dice: NotRequired[Score]
    best_epoch: int
    epochs: int
    train_images: Annotated[int, Ge(1)]
    val_images: Annotated[int, Ge(1)]
    train_groups: NotRequired[int | None]
    device: str


@open_ended
class Attributes(TypedDict, total=False):
    """What a sweep keeps with a trial: which training it is, and what has become of it."""

    repeat: int
    fold: int
    seed: int
    arm: str
    proposal: int
    rebuilt: int
    drawn: dict[str, Any]
    worker: str
    scores: dict[str, Any]  # `FoldScores`, of a training that is finished
    seconds: float
    failure: str
    error: str
    pruned: bool
    exhausted: bool
    duplicate_of: int
