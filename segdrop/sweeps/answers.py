"""The answer of a sweep: what is known of each arm, and how it compares with its reference."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..scoring.comparison import ArmComparison
from ..scoring.designs import Needed
from ..scoring.learning import Worth
from ..scoring.statistics import PairedTest
from .results import Arm, Failure, Results, Training

LEVEL = 0.05  # of the adjusted p value


@dataclass(frozen=True, eq=False)
class Comparison:
    """An arm beside its reference.

    Attributes:
        table: `comparison.compare` of all arms together: what decides.
        test: `statistics.corrected_paired_test` of the differences of the folds, the arm by itself; NaN where there is
            but one fold.
        holm_p: its p value, adjusted by Holm's procedure for all comparisons of the sweep and for its pruned arms.
        images: the mean difference of the images and its 95% interval over groups of images, for the networks as they
            were trained.
        needed: what would tell the difference, if it and the spread stayed as they are.
    """

    table: ArmComparison
    test: PairedTest
    holm_p: float
    images: tuple[float, float, float]
    needed: Needed

    @property
    def difference(self) -> float:
        """Of the mean Dice, positive where the arm is better."""
        return self.table.difference

    @property
    def adjusted_p(self) -> float:
        return self.table.adjusted_p

    @property
    def verdict(self) -> str:
        return self.table.verdict


@dataclass(frozen=True, eq=False)
class ArmAnswer:
    """What is known of an arm.

    Attributes:
        arm: its description.
        state: "complete" if all its trainings are finished, else "failed" (one at least ended with an error),
            "incomplete" or "pruned".
        trained, failed, expected: the number of finished trainings, of those that ended with an error, and of all.
        reason: of its first failure; "" if it has none.
        dice, iou: float64 (repeats, folds), means over the seeds; NaN where not all seeds have ended, or all failed.
        means: of a complete arm the means over all trainings of "dice", "iou", "gap" (Dice on training images less that
            on validation images), "ece", "ece_foreground", "brier", "best_epoch" (counted from 0), "epochs" and
            "seconds"; empty for others.
        columns: folds and repeats after which it was trained no further, because it was told or hopeless; None where
            all are trained.
        comparison: None for an arm that is its own reference, and unless all trainings of both have ended, in two
            folds at least with a Dice; None for all where no training of the sweep has learnt anything.
    """

    arm: Arm
    state: str
    trained: int
    failed: int
    expected: int
    reason: str
    dice: np.ndarray
    iou: np.ndarray
    means: Mapping[str, float]
    comparison: Comparison | None
    columns: int | None = None

    @property
    def progress(self) -> str:
        """The state as it is told, with the number of trainings that are there of an arm that is not complete."""
        if self.state == "complete" and self.columns is not None:
            return f"ended after {self.columns} of {self.dice.size} folds"
        if self.state in ("complete", "pruned"):
            return {"complete": "complete", "pruned": "dropped after a fold"}[self.state]
        return f"{self.trained} of {self.expected} trained" + (f", {self.failed} failed" if self.failed else "")


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a sweep, made by `comparing.answer`.

    Attributes:
        results: what it was made from.
        arms: in the order of the sweep.
        chosen: index of the complete arm with the highest mean Dice (of equal ones that with the lower rate, then the
            first); None if there is none.
        failures: those of trainings that have not succeeded since.
        independent: the number of groups of validation images, or of images where there are no groups.
        fold_std, seed_std: standard deviation of Dice over the folds of an arm (seeds averaged) and over the seeds of a
            fold, pooled over the complete arms; NaN where there are fewer than two.
        contrasts: what was to be compared beforehand, by name; empty until their arms are complete.
        worths: by arm what its gain is worth in labels, where arms were trained on a part of them, too.
        std: standard deviation of a training's Dice about its arm and fold, pooled over the compared arms; NaN where
            nothing is compared.
        degrees: degrees of freedom of that; 0 where it is not known.
        apart: the arms whose spread is larger than that of the others, so that they are compared by themselves.
        noisy: the references of several for which that is so, and whose own spread is taken.
        gained: by what share the references' further seeds have narrowed the intervals; 0 where there are none.
        blank, rising: the finished trainings that have learnt nothing, and those whose last epoch is the best.
        headline: the answer in one sentence.
        about_the_sweep: what there is to say of the sweep beside the headline, a sentence each.
        about_the_arms: a sentence or more for each comparison.
    """

    results: Results
    arms: Sequence[ArmAnswer]
    chosen: int | None
    failures: Sequence[Failure]
    independent: int
    fold_std: float
    seed_std: float
    blank: Sequence[Training]
    rising: Sequence[Training]
    contrasts: Mapping[str, ArmComparison] = dataclasses.field(default_factory=dict)
    worths: Mapping[int, Worth] = dataclasses.field(default_factory=dict)
    std: float = math.nan
    degrees: float = 0.0
    apart: Sequence[int] = ()
    noisy: Sequence[int] = ()
    gained: float = 0.0
    headline: str = ""
    about_the_sweep: Sequence[str] = ()
    about_the_arms: Sequence[str] = ()

    @property
    def trained(self) -> int:
        """The number of finished trainings."""
        return sum(arm_answer.trained for arm_answer in self.arms)

    @property
    def nothing_learnt(self) -> bool:
        """Whether no training has learnt anything, so that there is nothing to compare."""
        return 0 < self.trained == len(self.blank)

    @property
    def expected(self) -> int:
        """The number of all trainings; of pruned arms those that have ended."""
        return sum(arm_answer.expected for arm_answer in self.arms)

    @property
    def sentences(self) -> list[str]:
        """What there is to say beside the headline."""
        return [*self.about_the_sweep, *self.about_the_arms]
