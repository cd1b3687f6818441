"""scoring.learning: learning curves, and how many labelled units a gain is worth."""

import dataclasses
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segdrop import InputError
from segdrop.scoring.learning import EXPONENTS, Worth, fit_curve, fit_curves
from segdrop.scoring.statistics import corrected_paired_test

UNITS = np.array([5.0, 10, 20, 40])
RNG = np.random.default_rng(0)


def power_law(units, a=0.9, b=0.8, c=0.7):
    return a - b * np.asarray(units, float) ** -c


def noisy(units, folds=5, noise=0.01, seed=0, **law):
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, noise, (len(units), folds))
    return power_law(units, **law)[:, None] + rng.normal(0, 0.03, folds) + luck


def test_a_power_law_is_found_and_continued():
    curve = fit_curve(power_law(UNITS)[:, None] + [-0.01, 0.01], UNITS, test_share=1)
    assert curve.exponent == pytest.approx(0.7, abs=1e-4)
    assert curve.level == pytest.approx(power_law(40), abs=1e-6)
    assert curve.predict(160).mean == pytest.approx(power_law(160), abs=1e-5)
    # a = level + slope / c, b = slope N^c / c
    assert curve.level + curve.slope / curve.exponent == pytest.approx(0.9, abs=1e-4)
    assert curve.slope * 40**curve.exponent / curve.exponent == pytest.approx(0.8, abs=1e-3)


def test_two_numbers_of_units_give_an_inverse_square_root():
    """0.9 - 1 / sqrt(n): 0.65 of 16, 0.7 of 25, so 0.8 of 100."""
    curve = fit_curve([[0.65, 0.65], [0.70, 0.70]], [16, 25], test_share=1)
    assert curve.exponent == 0.5 and len(curve.exponents) == len(EXPONENTS)
    assert curve.predict(100).mean == pytest.approx(0.8)


def test_three_numbers_of_units_give_the_nearest_exponent_that_they_do_not_exclude():
    folds = np.linspace(-0.02, 0.02, 5)
    told = fit_curve(power_law([10, 20, 40], c=1.5)[:, None] + folds, [10, 20, 40], test_share=0.25)
    assert told.exponents.tolist() == [1.5] and told.exponent == 1.5
    vague = fit_curve(noisy([10, 20, 40], noise=0.03, c=1.5), [10, 20, 40], test_share=0.25)
    assert vague.exponent == 0.5 and {0.5, 1.5} <= set(vague.exponents.round(6))


def test_the_order_of_the_fractions_does_not_matter():
    scores = noisy(UNITS)
    turned = fit_curve(scores[::-1], UNITS[::-1], test_share=0.25)
    assert turned.predict(80) == fit_curve(scores, UNITS, test_share=0.25).predict(80)


def of_exponents(curve, *exponents):
    return dataclasses.replace(curve, exponents=np.array(exponents))


def test_of_one_exponent_the_interval_is_the_corrected_tests_of_the_folds():
    """Of c = 0.5 and units 16, 25: the fold's Dice at 20.25 is between its two with weights 4 / 9 and 5 / 9."""
    scores = np.array([[0.60, 0.66, 0.63], [0.70, 0.71, 0.78]])
    curve = of_exponents(fit_curve(scores, [16, 25], test_share=0.5), 0.5)
    x = (1 / math.sqrt(16) - 1 / math.sqrt(20.25)) / (1 / math.sqrt(16) - 1 / math.sqrt(25))
    test = corrected_paired_test((1 - x) * scores[0] + x * scores[1], test_share=0.5)
    told = curve.predict(20.25)
    assert (told.mean, told.low, told.high) == pytest.approx((test.mean, test.low, test.high))


def test_for_the_same_folds_only_luck_counts():
    """Each fold's scores follow one curve with a level of its own: where it will be is known."""
    scores = power_law(UNITS, c=0.5)[:, None] + np.array([-0.1, 0.0, 0.1])
    curve = fit_curve(scores, UNITS, test_share=0.5)
    same, new = curve.predict(30, same_folds=True), curve.predict(30)
    assert same.low == pytest.approx(same.high) == pytest.approx(power_law(30, c=0.5))
    assert new.high - new.low > 0.3
    # Two units, c = 0.5: luck has half of the differences' variance, the weights are w and 1 - w, and 1 for what comes.
    scores = np.array([[0.60, 0.66, 0.63], [0.70, 0.71, 0.78]])
    curve = of_exponents(fit_curve(scores, [16, 25], test_share=0.5), 0.5)
    luck = np.var(scores[1] - scores[0], ddof=1) / 2
    w = (1 / math.sqrt(20.25) - 1 / math.sqrt(25)) / (1 / math.sqrt(16) - 1 / math.sqrt(25))
    half = 4.302653 * math.sqrt(luck * (w**2 + (1 - w) ** 2 + 1) * (1 / 3 + 0.5))
    told = curve.predict(20.25, same_folds=True)
    assert told.high - told.mean == pytest.approx(half, rel=1e-5)


def test_beyond_all_units_dice_may_rise_no_further():
    scores = power_law(UNITS, c=0.5)[:, None] + np.array([-0.001, 0.0, 0.001])
    curve = fit_curve(scores, UNITS, test_share=0.5)
    assert curve.exponents.tolist() == [0.5]
    ahead, within = curve.predict(160, same_folds=True), curve.predict(39.9, same_folds=True)
    assert ahead.low == pytest.approx(power_law(40, c=0.5)) and ahead.high == pytest.approx(power_law(160, c=0.5))
    assert within.low == pytest.approx(within.high)


def test_predictions_are_dice():
    curve = fit_curve([[0.1, 0.12], [0.9, 0.93]], [10, 20], test_share=1)
    assert curve.predict(1000).mean == curve.predict(1000).high == 1
    assert curve.predict(1).mean == curve.predict(1).low == 0


def exact(gain, a=0.9, b=1.0):
    """Two arms, the first 0.9 - 1 / sqrt(n) at 16 and 25 units, the other ahead at 25; folds that do not differ."""
    plain = np.repeat(power_law([16, 25], a, b, 0.5)[:, None], 2, axis=1)
    return fit_curves([plain, np.add(plain, [[0], [gain]])], [16, 25], test_share=1)


@pytest.mark.parametrize(
    ("gain", "units"),
    [
        (0.0, 0.0),
        (0.9 - 1 / 6 - 0.7, 11.0),  # what 36 units have
        (0.9 - 1 / 4 - 0.7, -9.0),  # 16
        (0.1799, 1 / 0.0201**2 - 25),
        (0.1801, math.inf),  # 0.88 of 2500 units are the last that are told; the curve ends at 0.9
        (0.25, math.inf),
        (-0.6, 1 / 0.8**2 - 25),  # 0.9 - 1 / sqrt(n) = 0.1
    ],
)
def test_a_gain_is_worth_the_units_that_the_reference_needs_for_it(gain, units):
    plain, other = exact(gain)
    found = plain.worth(other)
    assert found.gain == pytest.approx(gain)
    assert found.units == pytest.approx(units)


def test_a_reference_that_does_not_rise_has_no_such_number():
    falling = [[[0.7, 0.72], [0.6, 0.63]], [[0.7, 0.7], [0.8, 0.8]]]
    plain, other = fit_curves(falling, [10, 20], test_share=1)
    found = plain.worth(other)
    assert math.isnan(found.units) and found.high == math.inf and found.gain == pytest.approx(0.185)
    assert "no number of labelled images: more of them do not raise" in found.in_words("images")


def test_the_ends_of_an_interval_are_where_the_corrected_test_rejects():
    scores = noisy([10, 40], noise=0.005, seed=3)
    plain, other = fit_curves([scores, scores + 0.01 * RNG.normal(1, 1, scores.shape)], [10, 40], 0.25)
    plain = of_exponents(plain, 0.0)  # Dice = level + slope log(n / 40)
    slopes = (plain.scores[1] - plain.scores[0]) / math.log(4)
    found = plain.worth(other)
    assert 0 < found.high < math.inf
    for end in (found.low, found.high):
        rest = slopes * math.log(1 + end / 40) - (other.scores[1] - plain.scores[1])
        assert corrected_paired_test(rest, 0.25).p == pytest.approx(0.05, abs=1e-6)


def test_an_interval_is_the_union_over_all_exponents():
    plain, other = fit_curves([noisy([10, 40], seed=1), noisy([10, 40], seed=1) + 0.01], [10, 40], 0.25)
    each = [of_exponents(plain, c).worth(other) for c in plain.exponents]
    whole = plain.worth(other)
    assert whole.low == pytest.approx(min(one.low for one in each))
    assert whole.high == pytest.approx(max(one.high for one in each))
    assert whole.low < whole.units < whole.high


def test_a_rise_that_is_not_told_leaves_no_upper_end():
    rise = np.array([0.05, -0.03, 0.06, 0.0, 0.02])
    plain = np.stack([np.full(5, 0.7), 0.7 + rise])
    for gain, low in ((np.full(5, 0.05), 0), (np.array([0.05, -0.05, 0.01, 0.02, -0.02]), -40)):
        curves = fit_curves([plain, np.add(plain, [np.zeros(5), gain])], [20, 40], test_share=0.25)
        found = curves[0].worth(curves[1])
        assert found.high == math.inf
        assert found.low > 0 if low == 0 else found.low == -40
    lost = fit_curves([plain, np.subtract(plain, [np.zeros(5), np.full(5, 0.05)])], [20, 40], test_share=0.25)
    found = lost[0].worth(lost[1])
    assert found.high < 0 and found.low == -40


def test_a_fold_that_lacks_a_score_is_left_out_of_all_arms():
    whole = np.stack([noisy(UNITS), noisy(UNITS, seed=1)])
    holed = whole.copy()
    holed[1, 2, 3] = np.nan
    left = fit_curves(holed, UNITS, 0.25)
    without = fit_curves(np.delete(whole, 3, axis=2), UNITS, 0.25)
    assert [curve.scores.shape for curve in left] == [(4, 4)] * 2
    assert left[0].predict(80) == without[0].predict(80)
    assert left[0].worth(left[1]) == without[0].worth(without[1])


def test_one_fold_gives_no_interval_and_none_gives_nothing():
    scores = noisy(UNITS, folds=1)
    one, none = fit_curve(scores, UNITS, 1.0), fit_curve(scores * np.nan, UNITS, 1.0)
    told = one.predict(80)
    assert 0 < told.mean < 1 and math.isnan(told.low) and math.isnan(told.high)
    worth = one.worth(one)
    assert worth.units == 0 and math.isnan(worth.low)
    assert all(map(math.isnan, dataclasses.astuple(none.predict(80)) + dataclasses.astuple(none.worth(none))))


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        (Worth(0.01, 6.4, -2.2, 15.3), "worth 6 more labelled patients [-2, 15]"),
        (Worth(-0.01, -3.0, -9.0, 2.0), "worth 3 fewer labelled patients [-9, 2]"),
        (Worth(0.1, math.inf, 4.0, math.inf), "worth more than 100 times as many labelled patients [4, no upper end]"),
        (Worth(0.01, 5.0, math.nan, math.nan), "worth 5 more labelled patients [unknown, unknown]"),
    ],
)
def test_worth_in_words(worth, words):
    assert worth.in_words() == words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": [5]}, "`units` must be at least two numbers"),
        ({"units": [5, 5, 10]}, "none of them twice"),
        ({"units": [0, 5, 10]}, "`units` must be positive numbers"),
        ({"units": [5, 10]}, "`scores` must have a row for each of 2 numbers of units, got (3, 2)."),
        ({"scores": np.full((3, 2), 70.0)}, "`scores` must be Dice, 0..1, or NaN."),
        ({"test_share": -1}, "`test_share` must be a number that is not negative, got test_share=-1."),
        ({"confidence": 1}, "`confidence` must be in (0, 1), got confidence=1."),
    ],
)
def test_what_cannot_be_fitted_is_told_in_one_line(change, message):
    given = {"scores": np.full((3, 2), 0.7), "units": [5, 10, 20], "test_share": 1.0}
    with pytest.raises(InputError) as caught:
        fit_curve(**{**given, **change})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_mistakes_are_told_in_one_line():
    with pytest.raises(InputError, match="`dice` must be of the shape"):
        fit_curves(np.full((3, 2), 0.7), [5, 10, 20], 1.0)
    curve = fit_curve(noisy(UNITS), UNITS, 0.25)
    for units in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="`units` must be a positive number, got"):
            curve.predict(units)
    with pytest.raises(InputError, match="`other` must have the same numbers of units"):
        curve.worth(fit_curve(noisy(UNITS, folds=3), UNITS, 0.25))


def test_it_needs_no_tensorflow():
    code = "import segdrop.scoring.learning, sys; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def simulation():
    path = Path(__file__).parents[1] / "benchmarks" / "learning_curves.py"
    spec = importlib.util.spec_from_file_location("learning_curves", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("fractions", [2, 3, 4])
@pytest.mark.parametrize("folds", [3, 5])
@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_the_interval_from_half_of_the_labels_holds_what_all_give(fractions, folds, noise):
    found = simulation().predictions(100, fractions, folds, noise, np.random.default_rng(0))
    assert found[:, [0, 2]].min() >= 0.9  # of each curve; new folds, and the same ones
    assert found[:, 4].mean() < 0.8  # the bootstrap of so few folds


@pytest.mark.slow
@pytest.mark.parametrize("folds", [3, 5])
@pytest.mark.parametrize("ahead", [0, 8])
def test_the_interval_of_the_worth_holds_it(folds, ahead):
    found = simulation().worths(100, folds, 0.02, ahead, np.random.default_rng(0))
    assert found[:, 0].min() >= 0.88 and found[:, 0].mean() >= 0.93
