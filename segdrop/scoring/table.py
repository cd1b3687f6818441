"""A table of scores by arm and fold, some of which may be missing: its fit, its spread, and whose spread differs."""

import functools
import math
from collections.abc import Collection

import numpy as np

from ..config.checks import plain, real_numbers
from ..errors import InputError
from ..typed import shortened

# From this p on, the spread of an arm or of a reference is taken by itself. By simulation (benchmarks/rejection.py): a
# lower one lets noisy arms raise false alarms, a higher one gives up what a spread that all share tells on three folds.
LEVEL = 0.25
DRAWS = 2000  # of tables whose arms vary alike


class Table:
    """Scores that are an arm's mean, a fold's, and luck (least squares by arm and fold).

    Args:
        scores: float (arms, folds x repeats) or (arms, folds x repeats, seeds); NaN, or masked, where missing.

    Attributes:
        arms: their number.
        cells: float64 (arms, folds x repeats), means over the seeds.
        usable: bool (arms,), whether the arm has two folds or more; the fit is theirs.
        degrees: degrees of freedom of the spread.

    Raises:
        InputError: the table has another form, what is no number, an infinite score, or fewer than two arms or
            columns.

    References:
        Searle, "Linear models for unbalanced data", 1987, for missing cells. Folds are fixed effects: with three to
        ten of them, a mixed model's spread of the folds would be a guess, and what it gains is small.
    """

    def __init__(self, scores):
        table = real_numbers(scores)
        if table is None:
            raise InputError(
                "`scores` must be numbers, or NaN where a training is missing, in rows of one length, got "
                f"{shortened(plain(scores))}."
            )
        if table.ndim not in (2, 3) or table.shape[0] < 2 or table.shape[1] < 2:
            raise InputError(
                "`scores` must have a row for each arm and a column for each fold, two of both at least, got the shape "
                f"{table.shape}."
            )
        if np.isinf(table).any():
            raise InputError("`scores` must be numbers, or NaN where a training is missing, got an infinite one.")
        table = table.reshape(*table.shape[:2], -1)
        self.arms = len(table)
        seeds = np.count_nonzero(~np.isnan(table), axis=2)
        self.cells = np.divide(np.nansum(table, axis=2), seeds, out=np.full(seeds.shape, np.nan), where=seeds > 0)
        self.usable = (seeds > 0).sum(axis=1) >= 2
        present = (seeds > 0) & self.usable[:, None]
        self._fit = _Fit(present)
        self._values, self._seeds = self.cells[present], seeds[present]
        self._residuals = self._fit.residuals(self._values)
        self._luck(table[present])

    def _luck(self, trainings: np.ndarray) -> None:
        """Split the variance of a cell: what seeds average out, and the rest. `trainings`: (cells, seeds)."""
        squares, fit = float(self._residuals @ self._residuals), self._fit
        self.degrees, self._seed_degrees = fit.degrees, int((self._seeds - 1).sum())
        self._mean_square = squares / fit.degrees if fit.degrees > 0 else math.nan
        if len(self._values) and self._mean_square < (1e-12 * np.abs(self._values).max()) ** 2:
            self._mean_square = 0.0  # rounding
        deviations = trainings - self._values[:, None]
        self._seed_square = float(np.nansum(deviations**2)) / self._seed_degrees if self._seed_degrees else 0.0
        self._share = float((fit.room / self._seeds).sum()) / fit.degrees if fit.degrees > 0 else math.nan
        self._rest = self._mean_square - self._share * self._seed_square
        if self._rest < 0:  # folds add nothing to what seeds vary by: all of it is the luck of seeds
            squares = self._mean_square * self.degrees / self._share + self._seed_square * self._seed_degrees
            self._rest, self._seed_square = 0.0, squares / (self.degrees + self._seed_degrees)
        self._fewest = int(self._seeds.min()) if len(self._seeds) else 1

    @property
    def std(self) -> float:
        """Standard deviation of a cell of the arms with the fewest seeds about its arm and fold."""
        return math.sqrt(self._rest + self._seed_square / self._fewest)

    def estimate(
        self, contrast: np.ndarray, shares: np.ndarray, noisy: Collection[int] = ()
    ) -> tuple[float, np.ndarray, float] | None:
        """A contrast of arms, (arms,) weights that add up to 0.

        Args:
            shares: (arms,), n_test / n_train: what the variance of an arm's mean gains for shared training images.
            noisy: arms whose own spread is taken, where it is larger (Welch's test).

        Returns:
            the estimate, what each arm adds to its variance (arms,), and the degrees of freedom (Satterthwaite's, where
            arms have other numbers of seeds or are noisy); None where the folds do not connect its arms, or no spread
            is known.
        """
        weights = self._fit.weights(contrast)
        if weights is None or not self.degrees > 0:
            return None
        squares, shared = weights**2, shares * contrast**2
        total, common = squares.sum(), shared.sum()
        degrees = float(self.degrees + self._seed_degrees)
        if self._rest and self._seed_degrees:
            by_cell = self._mean_square * (total + common)
            by_seed = self._seed_square * (
                (squares / self._seeds).sum() - self._share * total + (1 / self._fewest - self._share) * common
            )
            pieces = by_cell**2 / self.degrees + by_seed**2 / self._seed_degrees
            degrees = round(float((by_cell + by_seed) ** 2 / pieces), 6)
        cells = squares * (self._rest + self._seed_square / self._seeds)
        each = self._fit.by_arm(cells) + shared * (self._rest + self._seed_square / self._fewest)
        estimate = float(weights @ self._values)
        if not each.any() and abs(estimate) < 1e-12:
            estimate = 0.0  # rounding
        own = [arm for arm in noisy if contrast[arm]]
        return estimate, *(self._with_own_spread(own, each, degrees) if own else (each, degrees))

    def _with_own_spread(self, arms: list[int], each: np.ndarray, degrees: float) -> tuple[np.ndarray, float]:
        """What arms add to a variance, and its degrees of freedom, with the spread of some about the others' mean."""
        each, pieces = each.copy(), 0.0
        for arm in arms:
            mine = self._fit.arm == arm
            room, own = float(self._fit.room[mine].sum()), int(mine.sum()) - 1
            found = float((self._residuals[mine] ** 2).sum()) * own / room**2
            each[arm] *= max(1.0, found / (self._rest + self._seed_square / float(self._seeds[mine].mean())))
            pieces, degrees = pieces + each[arm] ** 2 / own, degrees - own
        others = each.sum() - each[arms].sum()
        return each, round(float(each.sum() ** 2 / (pieces + others**2 / max(1.0, degrees))), 6)

    def spread_by_arm(self) -> np.ndarray:
        """Standard deviation of each arm about its mean and its folds', (arms,); NaN where it cannot be told."""
        squares, room = self._fit.by_arm(self._residuals**2), self._fit.by_arm(self._fit.room)
        return np.sqrt(np.divide(squares, room, out=np.full(self.arms, np.nan), where=room > 1e-9))

    def apart(self, references: Collection[int]) -> tuple[list[int], list[int]]:
        """The arms that vary more than the others do, by a test against tables of arms that vary alike.

        An arm that has more seeds than others varies less, and is found too rarely rather than too often.

        Returns:
            those that few or no others are compared with, and those that several are.
        """
        if self.usable.sum() < 3 or not self._mean_square > 0:
            return [], []
        alone, largest = self._fit.spread_p(self._residuals)
        shared = {one for one in references if list(references).count(one) > 2}  # its own place, and two others'
        usable = np.flatnonzero(self.usable).tolist()
        return (
            [arm for arm in usable if arm not in shared and largest[arm] < LEVEL],
            [arm for arm in usable if arm in shared and alone[arm] < LEVEL],
        )


class _Fit:
    """Least squares by arm and fold, of the cells that are there: bool (arms, folds)."""

    def __init__(self, present: np.ndarray):
        self.present = present
        self.arm, fold = np.nonzero(present)
        count = len(present)
        design = np.zeros((len(self.arm), sum(present.shape)))
        design[np.arange(len(self.arm)), self.arm] = 1
        design[np.arange(len(self.arm)), count + fold] = 1
        self._solve = np.linalg.pinv(design)[:count]
        left, size, _ = np.linalg.svd(design, full_matrices=False)
        self._basis = left[:, size > 1e-9]
        self.degrees = len(self.arm) - self._basis.shape[1]
        self.room = 1 - np.einsum("ij,ij->i", self._basis, self._basis)  # share of a cell's variance in its residual

    def residuals(self, cells: np.ndarray) -> np.ndarray:
        """(cells,) or (cells, draws)."""
        return cells - self._basis @ (self._basis.T @ cells)

    def weights(self, contrast: np.ndarray) -> np.ndarray | None:
        """What the cells are multiplied by to estimate a contrast; None where the folds do not connect its arms."""
        weights = contrast @ self._solve
        own = np.bincount(self.arm, weights, minlength=len(contrast))
        return weights if np.allclose(own, contrast, atol=1e-8 * np.abs(contrast).max()) else None

    def by_arm(self, values: np.ndarray) -> np.ndarray:
        """Sums over the cells of each arm, (arms,) or (arms, draws)."""
        sums = np.zeros((len(self.present), *values.shape[1:]))
        np.add.at(sums, self.arm, values)
        return sums

    def spread_p(self, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P values (arms,) of an arm's spread among arms that vary alike: of it by itself, and as the largest."""
        null = _among_equals(self.present.shape, self.present.tobytes())
        found = self.ratios(residuals)[:, None]
        alone = np.count_nonzero(null >= found, axis=1)
        largest = np.count_nonzero(null.max(axis=0) >= found, axis=1)
        return (1 + alone) / (DRAWS + 1), (1 + largest) / (DRAWS + 1)

    def ratios(self, residuals: np.ndarray) -> np.ndarray:
        """The mean square of each arm over that of all others together, (arms,) or (arms, draws)."""
        squares = self.by_arm(residuals**2)
        room = self.by_arm(self.room).reshape(-1, *[1] * (residuals.ndim - 1))
        own = np.divide(squares, room, out=np.zeros_like(squares), where=room > 1e-9)
        others = (squares.sum(axis=0) - squares) / np.maximum(room.sum(axis=0) - room, 1e-9)
        return own / np.maximum(others, 1e-300)


@functools.lru_cache(maxsize=64)
def _among_equals(shape: tuple[int, int], present: bytes) -> np.ndarray:
    """Simulated ratios of arms that vary alike, (arms, draws); they depend on nothing but which cells are there."""
    fit = _Fit(np.frombuffer(present, bool).reshape(shape))
    return fit.ratios(fit.residuals(np.random.default_rng(0).standard_normal((len(fit.arm), DRAWS))))
