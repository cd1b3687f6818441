"""What a sweep can tell before it is run: the differences that arms, folds, repeats and seeds allow to be seen."""

import dataclasses
import functools
import math

from scipy import optimize, stats

from ..errors import InputError
from .dunnett import simultaneous_quantile

MOST_REPEATS = 1000


@dataclasses.dataclass(frozen=True)
class Needed:
    """What would tell a difference: at most one of the two is given.

    Attributes:
        repeats: of the whole cross-validation, those already done included.
        patients_factor: how many times as many independent groups, where no number of repeats is enough.
    """

    repeats: int | None = None
    patients_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class Design:
    """A sweep's plan, as far as its intervals depend on it; the spread of a training is given with each question.

    Attributes:
        arms: number of arms that are compared with the reference, at least 1.
        folds, repeats: of the cross-validation, at least 2 and 1.
        reference_seeds: trainings of the reference for one of an arm; what they average out is taken to be all of a
            training's luck, so that the gain is the largest possible.
        test_share: n_test / n_train; by default 1 / (folds - 1).
        confidence: of all intervals together, in (0, 1).

    Example:
        >>> design = Design(arms=4, folds=5, reference_seeds=2)
        >>> round(design.half_width(0.02), 3), round(design.detectable(0.02), 3)
        (0.049, 0.065)
    """

    arms: int
    folds: int
    repeats: int = 1
    reference_seeds: float = 1
    test_share: float | None = None
    confidence: float = 0.95

    def __post_init__(self):
        if self.arms < 1 or self.folds < 2 or self.repeats < 1:
            raise InputError(
                f"A design needs an arm to compare and two folds, got arms={self.arms}, folds={self.folds}, "
                f"repeats={self.repeats}."
            )

    @property
    def _columns(self) -> int:
        return self.folds * self.repeats

    @property
    def _share(self) -> float:
        return 1 / (self.folds - 1) if self.test_share is None else self.test_share

    @property
    def _parts(self) -> tuple[float, float]:
        """Variance of an arm's mean and of the reference's, for a spread of 1."""
        return 1 / self._columns + self._share, 1 / (self._columns * self.reference_seeds) + self._share

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the spread."""
        return self.arms * (self._columns - 1)

    @functools.cached_property
    def _quantile(self) -> float:
        arm, reference = self._parts
        correlation = math.sqrt(reference / (arm + reference))
        return simultaneous_quantile(self.confidence, self.degrees, [[correlation] * self.arms])

    def half_width(self, std: float) -> float:
        """Half of a simultaneous interval, in the unit of `std`, the standard deviation of a training."""
        return self._quantile * std * math.sqrt(sum(self._parts))

    def detectable(self, std: float, power: float = 0.8) -> float:
        """The true difference that is told in this share of sweeps: its interval leaves out 0, on its side."""
        ratio = optimize.brentq(
            lambda value: stats.nct.sf(self._quantile, self.degrees, value) - power, 0, self._quantile * 2 + 10
        )
        return float(ratio) * std * math.sqrt(sum(self._parts))

    def needed(self, difference: float, std: float) -> Needed:
        """What would tell this difference if it and the spread stayed as they are: repeats, or else more patients.

        Example:
            >>> Design(arms=4, folds=5).needed(0.04, std=0.02), Design(arms=4, folds=5).needed(0.01, std=0.02)
            (Needed(repeats=4, patients_factor=None), Needed(repeats=None, patients_factor=26.3...))
        """
        width = self.half_width(std)
        if not abs(difference) > 0 or not width > abs(difference):
            return Needed()
        least, most = self.repeats, MOST_REPEATS
        if self._repeated(most).half_width(std) >= abs(difference):
            return Needed(patients_factor=(width / difference) ** 2)
        while most - least > 1:
            middle = (least + most) // 2
            if self._repeated(middle).half_width(std) < abs(difference):
                most = middle
            else:
                least = middle
        return Needed(repeats=most)

    def _repeated(self, repeats: int) -> "Design":
        return _with_repeats(self, repeats)


@functools.lru_cache(maxsize=4096)
def _with_repeats(design: Design, repeats: int) -> Design:
    """Kept, with the quantile that it has found: all arms of a sweep ask for the same ones."""
    return dataclasses.replace(design, repeats=repeats)
