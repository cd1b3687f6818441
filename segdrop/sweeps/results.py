"""What a sweep has measured so far: its arms, trainings and failures. Imports neither TensorFlow nor Optuna."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..config.sweep import MARGIN
from ..scoring.counts import hardly_better

STORED = ("dice", "iou", "train_dice", "ece", "ece_foreground", "brier", "best_epoch", "epochs")  # with a trial
MEASURES = (*STORED, "seconds")  # of each training


@dataclass(frozen=True)
class Arm:
    """One configuration of a sweep, trained on the same folds, repeats and seeds as all others.

    Attributes:
        name: as the user reads it, e.g. "none", "spatial 0.2", "element 0.2 at block_end", "spatial 0.2, lr=0.0003".
        rate: the dropout rate, 0 <= rate < 1; None where it is not one number.
        curve: what the plot joins by a line: the name without the rate, e.g. "spatial", "element at block_end".
        reference: the index of the arm that it is compared with; its own where it is not compared.
        changes: the fields of the training configuration that the arm sets.
        pruned: whether a search dropped it after its first fold: it is listed and never compared.
        test_share: images of validation for one of training, where it trains on fewer than the sweep's other arms.
        seeds: what it is trained with in every fold, where that is more than the sweep's seeds.
        labelled: the number of patients (groups of images) that it trains on, or of images where there are no groups,
            the mean over folds; 0 where it is not known.
    """

    name: str
    rate: float | None
    curve: str
    reference: int
    changes: Mapping[str, object]
    pruned: bool = False
    test_share: float | None = None
    seeds: Sequence[int] = ()
    labelled: float = 0.0


@dataclass(frozen=True)
class Training:
    """The scores of one finished training, of its best epoch, in 0..1.

    Attributes:
        arm: index of the arm.
        repeat, fold: which repeat of the cross-validation and which of its folds, counted from 0.
        seed: the seed itself.
        dice, iou: on the validation images of the fold.
        train_dice: of the same model on as many training images, with dropout off.
        best_epoch: counted from 0.
        epochs: how many were trained.
        seconds: how long that took.
        ece, ece_foreground, brier: calibration on the validation images: expected calibration error over all pixels
            and over those near the foreground, and Brier score.
        images: Dice of each validation image, the mean of its foreground classes; NaN where undefined.
        constant_dice: of the validation images, if one class is predicted for all pixels; NaN where it is not known.
    """

    arm: int
    repeat: int
    fold: int
    seed: int
    dice: float
    iou: float
    train_dice: float
    best_epoch: int
    epochs: int
    seconds: float
    ece: float
    ece_foreground: float
    brier: float
    images: Mapping[str, float]
    constant_dice: float = math.nan

    @property
    def learnt_nothing(self) -> bool:
        return hardly_better(self.dice, self.constant_dice)

    @property
    def rising(self) -> bool:
        """Whether the last epoch is the best."""
        return self.best_epoch + 1 == self.epochs


@dataclass(frozen=True)
class Failure:
    """A training that ended with an error; `reason` is one sentence."""

    arm: int
    repeat: int
    fold: int
    seed: int
    reason: str


@dataclass(frozen=True)
class Results:
    """The finished trainings of a sweep.

    Attributes:
        title: the name of the sweep.
        facts: what the answer shows as a small table: data, images, groups, epochs, device.
        arms: all configurations, one at least of rate 0.
        folds, repeats: of the cross-validation.
        seeds: trained in every fold, of every arm.
        test_share: images of validation for one of training, the mean over folds, of arms that train on all.
        trainings: those that are finished, in any order; of several of the same arm, repeat, fold and seed the last
            counts.
        failures: those that ended with an error; one that has succeeded since does not count.
        groups: what stays together in a split, by image; None if each image stands for itself.
        test: the scores of the chosen arm on test data: dice, dice_interval, iou, iou_interval (pairs, or None),
            images (their number) and what (a phrase that says what was scored); None if there are none.
        margin: differences up to it do not matter.
        contrasts: weights (arms,) of what was to be compared beforehand, by name.
        stated: for each arm the index of its reference beforehand, where the answer may be asked of another.
        before: the version that started it, where that compared each arm by itself; else "".
        stops: whether arms were trained no further once they were told; n_test / n_train of each arm is then `shares`.
    """

    title: str
    facts: Mapping[str, str]
    arms: Sequence[Arm]
    folds: int
    repeats: int
    seeds: Sequence[int]
    test_share: float
    trainings: Sequence[Training]
    failures: Sequence[Failure]
    groups: Mapping[str, str] | None
    test: Mapping | None = None
    margin: float = MARGIN
    contrasts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    stated: Sequence[int] = ()
    before: str = ""
    stops: bool = False
    shares: Sequence[float] = ()

    def seeds_of(self, arm: int) -> Sequence[int]:
        """What an arm is trained with in every fold."""
        return self.arms[arm].seeds or self.seeds

    @property
    def all_seeds(self) -> list[int]:
        """The sweep's seeds, and then those that single arms have beside them."""
        return list(dict.fromkeys([*self.seeds, *(seed for arm in self.arms for seed in arm.seeds)]))

    @property
    def dropped(self) -> int:
        """The number of arms that a search dropped for their first fold: looked at, and so among the comparisons."""
        return sum(arm.pruned for arm in self.arms)


def best_arm(candidates: Sequence[tuple[Sequence[float], float | None]]) -> int | None:
    """The one rule by which an arm is chosen: the highest mean Dice; of equal ones the lower rate, then the first.

    Args:
        candidates: of each arm the Dice of all its trainings, in any order (none, or NaN among them, where it is not to
            be chosen), and its rate, or None where it is not one number.

    Returns:
        the place of the arm; None where there is none.

    Example:
        >>> best_arm([([0.7, 0.8], 0.0), ([0.8, 0.7], 0.1), ([], 0.2)])
        0
    """
    ranks = [
        # `fmean` adds exactly: the same trainings in another order have the same mean, to the last bit.
        (-statistics.fmean(dice), math.inf if rate is None else rate, place)
        for place, (dice, rate) in enumerate(candidates)
        if len(dice) and not any(map(math.isnan, dice))
    ]
    return min(ranks)[-1] if ranks else None
