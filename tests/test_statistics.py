"""Tests of differences: against published examples, SciPy, tables by hand, and simulations without an effect."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.model_selection import KFold, RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC

from segdrop.errors import InputError
from segdrop.scoring.statistics import (
    corrected_paired_test,
    fold_correlation,
    holm,
    paired_bootstrap,
    resampled_sums,
)

HELPS, UNCLEAR, NOISE = [0.02, 0.01, 0.03], [0.03, 0.00, 0.01], [0.02, -0.01, 0.0]


def sample(mean, std, count):
    """Values with exactly this mean and standard deviation."""
    values = np.random.default_rng(0).normal(size=count)
    return mean + std * (values - values.mean()) / values.std(ddof=1)


def equicorrelated(correlation, sweeps, folds):
    """Gaussian differences with mean 0 and the same correlation between any two folds."""
    rng = np.random.default_rng(1)
    shared, own = rng.normal(size=(sweeps, 1)), rng.normal(size=(sweeps, folds))
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * own


def rejection_rate(differences, test_share):
    return np.mean([corrected_paired_test(row, test_share).p < 0.05 for row in differences])


@pytest.fixture(scope="module")
def moons():
    """Scores of the four learners of scikit-learn's example "Statistical comparison of models using grid search"."""
    inputs, labels = make_moons(noise=0.352, random_state=1, n_samples=100)
    learners = {
        "rbf": SVC(random_state=0),
        "linear": SVC(kernel="linear", random_state=0),
        "cubic": SVC(kernel="poly", degree=3, random_state=0),
        "square": SVC(kernel="poly", degree=2, random_state=0),
    }
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    return {name: cross_val_score(svc, inputs, labels, cv=folds, scoring="roc_auc") for name, svc in learners.items()}


# scikit-learn.org, auto_examples/model_selection/plot_grid_search_stats: one-sided p values, there times six
@pytest.mark.parametrize(
    ("first", "second", "statistic", "times_six"),
    [
        ("rbf", "linear", 0.750, 1.000),
        ("rbf", "cubic", 1.657, 0.302),
        ("rbf", "square", 4.565, 0.000),
        ("linear", "cubic", 1.111, 0.807),
        ("linear", "square", 4.276, 0.000),
        ("cubic", "square", 3.851, 0.001),
    ],
)
def test_the_corrected_test_gives_scikit_learns_published_numbers(moons, first, second, statistic, times_six):
    test = corrected_paired_test(moons[first] - moons[second], test_share=10 / 90)
    assert test.statistic == pytest.approx(statistic, abs=5e-4)
    assert min(1, 6 * test.p / 2) == pytest.approx(times_six, abs=5e-4)
    assert test.degrees == 99


def test_interval_and_plain_test_are_scikit_learns_published_ones(moons):
    differences = moons["rbf"] - moons["linear"]
    corrected, plain = corrected_paired_test(differences, 1 / 9), corrected_paired_test(differences, 0)
    assert [corrected.low, corrected.high] == pytest.approx([-0.016445, 0.036445], abs=5e-7)
    assert corrected.p / 2 == pytest.approx(0.227, abs=5e-4)
    assert [plain.statistic, plain.p / 2] == pytest.approx([2.611, 0.005], abs=5e-4)


def test_three_folds_by_hand():
    test = corrected_paired_test(HELPS, test_share=0.5)
    assert [test.mean, test.std, test.degrees] == [pytest.approx(0.02), pytest.approx(0.01), 2]
    assert test.standard_error == pytest.approx(0.01 * (5 / 6) ** 0.5)
    assert test.statistic == pytest.approx(4.8**0.5)
    assert test.p == pytest.approx(1 - (4.8 / 6.8) ** 0.5)  # the t distribution with 2 degrees in closed form
    half = 4.30265 * 0.01 * (5 / 6) ** 0.5
    assert [test.low, test.high] == pytest.approx([0.02 - half, 0.02 + half], abs=1e-7)


def test_without_shared_training_data_it_is_the_plain_t_test():
    differences = np.random.default_rng(0).normal(0.5, 1, 12)
    expected = stats.ttest_1samp(differences, 0)
    test = corrected_paired_test(differences, test_share=0, confidence=0.9)
    assert [test.statistic, test.p] == pytest.approx([expected.statistic, expected.pvalue])
    assert [test.low, test.high] == pytest.approx(list(expected.confidence_interval(0.9)))


@pytest.mark.parametrize("mean", [-0.05, -0.03, 0.01, 0.03, 0.05])
def test_the_interval_leaves_out_zero_where_p_is_below_its_level(mean):
    test = corrected_paired_test(sample(mean, 0.03, 10), 1 / 4)
    assert (test.p < 0.05) == (test.low > 0 or test.high < 0)


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, float("nan"), 0.2]])
def test_too_few_or_undefined_differences_tell_nothing(differences):
    test = corrected_paired_test(differences, 0.5)
    assert np.isnan([test.mean, test.std, test.standard_error, test.statistic, test.p, test.low, test.high]).all()
    assert test.degrees == 0


@pytest.mark.parametrize(("value", "statistic", "p"), [(0.0, 0, 1), (0.1, np.inf, 0), (-0.1, -np.inf, 0)])
def test_equal_differences_have_an_interval_without_width(value, statistic, p):
    test = corrected_paired_test([value] * 3, 0.5)
    assert [test.mean, test.std, test.statistic, test.p, test.low, test.high] == [value, 0, statistic, p, value, value]


def test_p_of_equal_differences_is_the_limit_of_ever_smaller_spreads():
    p = [corrected_paired_test([0.1, 0.1 + spread, 0.1 - spread], 0.5).p for spread in (1e-2, 1e-4, 1e-6)]
    assert p[0] > p[1] > p[2] > 0
    assert p[2] < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.1, 0.2]], 0.5), "`differences` must have one dimension, got the shape (1, 2)."),
        (([0.1, 0.2], -0.5), "`test_share` must be a number that is not negative, got test_share=-0.5."),
        (([0.1, 0.2], float("nan")), "`test_share` must be a number that is not negative, got test_share=nan."),
        (([0.1, 0.2], 0.5, 95), "`confidence` must be in (0, 1), got confidence=95."),
    ],
)
def test_impossible_arguments_are_errors(arguments, message):
    with pytest.raises(InputError) as error:
        corrected_paired_test(*arguments)
    assert str(error.value) == message


def test_the_corrected_test_holds_its_level_at_the_correlation_it_assumes():
    differences = equicorrelated(1 / 3, sweeps=4000, folds=3)  # n_test / (n_test + n_train) = 1 / K
    assert rejection_rate(differences, test_share=1 / 2) == pytest.approx(0.05, abs=0.012)
    assert rejection_rate(differences, test_share=0) == pytest.approx(0.113, abs=0.02)


# P(|T| > q sqrt((1 - r) (1 + J share) / (1 + (J - 1) r))), q the 97.5% quantile, from SciPy's t
@pytest.mark.parametrize(("correlation", "expected"), [(0.0, 0.021), (0.5, 0.077), (0.7, 0.138), (0.9, 0.327)])
def test_it_rejects_too_often_where_folds_are_more_alike(correlation, expected):
    factor = ((1 - correlation) * 2.5 / (1 + 2 * correlation)) ** 0.5
    assert 2 * stats.t.sf(stats.t.ppf(0.975, 2) * factor, 2) == pytest.approx(expected, abs=5e-4)
    rate = rejection_rate(equicorrelated(correlation, 4000, 3), test_share=1 / 2)
    assert rate == pytest.approx(expected, abs=4 * (expected / 4000) ** 0.5)


def test_repeated_cross_validation_without_an_effect_fools_the_plain_test_and_not_the_corrected_one():
    """Least squares on one half of the inputs against the other: equally good, real training data that overlap."""
    rng = np.random.default_rng(0)
    folds = [pair for seed in range(5) for pair in KFold(3, shuffle=True, random_state=seed).split(np.empty(45))]
    differences = np.empty((300, len(folds)))
    for sweep in differences:
        halves = rng.normal(size=(2, 45, 5))
        target = halves.sum(axis=(0, 2)) + rng.normal(size=45)
        for fold, (train, test) in enumerate(folds):
            weights = [np.linalg.lstsq(half[train], target[train], rcond=None)[0] for half in halves]
            errors = [np.abs(half[test] @ w - target[test]).mean() for half, w in zip(halves, weights, strict=True)]
            sweep[fold] = errors[0] - errors[1]
    assert fold_correlation(differences) > 0.1
    assert rejection_rate(differences, test_share=0) > 0.25
    assert rejection_rate(differences, test_share=1 / 2) < 0.1


def test_holm_gives_the_published_numbers_of_r():
    """R's multtest, as recorded in statsmodels/stats/tests/test_multi.py (`pval0`, column Holm of `res_multtest1`)."""
    p = [0.838541367553, 0.642193923795, 0.680845947633, 0.967833824309, 0.71626938238]
    p += [0.177096952723, 5.23656777208e-005, 0.0202732688798, 0.00028140506198, 0.0149877310796]
    expected = [1, 1, 1, 1, 1, 1, 5.23656777208e-4, 0.1419128821586, 2.53264555782e-3, 0.1199018486368]
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # en.wikipedia.org/wiki/Holm-Bonferroni_method
        ([0.04, 0.01, np.nan, 0.02], [0.04, 0.03, np.nan, 0.04]),
        ([0.03], [0.03]),
        ([0.5, 0.6, 0.7], [1, 1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([np.nan, np.nan], [np.nan, np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p, expected):
    np.testing.assert_allclose(holm(p), expected)


def test_adjusted_values_below_the_level_are_what_the_step_down_procedure_rejects():
    for p in np.random.default_rng(0).beta(0.3, 3, size=(200, 6)):
        rejected = set()
        for step, index in enumerate(sorted(range(6), key=lambda i: p[i])):
            if p[index] >= 0.05 / (6 - step):
                break
            rejected.add(index)
        assert set(np.flatnonzero(holm(p) < 0.05)) == rejected


def test_holm_leaves_its_argument_alone():
    p = np.array([0.01, 0.02])
    holm(p)
    assert p.tolist() == [0.01, 0.02]


@pytest.mark.parametrize("p", [[0.1, 1.2], [-0.1], [[0.1]], 0.1])
def test_what_is_no_list_of_p_values_is_an_error(p):
    with pytest.raises(InputError, match=r"`p_values` must be a list of numbers in 0\.\.1, got "):
        holm(p)


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(0.1, 60) - 0.05
    options = {"method": "percentile", "n_resamples": 20_000, "rng": 0}
    expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
    mean, low, high = paired_bootstrap(values, resamples=20_000)
    width = expected.high - expected.low
    assert mean == pytest.approx(values.mean())
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=width / 30)


def test_whole_groups_are_drawn_as_in_scipys_bootstrap_of_a_ratio():
    rng = np.random.default_rng(0)
    groups = rng.integers(25, size=200)
    values = rng.normal(0.3, 0.1, 25)[groups] + rng.normal(0, 0.02, 200)
    sums, counts = np.bincount(groups, values), np.bincount(groups)

    def ratio(sums, counts, axis):
        return sums.sum(axis) / counts.sum(axis)

    options = {"method": "percentile", "n_resamples": 20_000, "paired": True, "vectorized": True, "rng": 0}
    expected = stats.bootstrap((sums, counts), ratio, **options).confidence_interval
    mean, low, high = paired_bootstrap(values, [f"patient {group}" for group in groups], resamples=20_000)
    width = expected.high - expected.low
    assert mean == pytest.approx(values.mean())
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=width / 30)
    _, image_low, image_high = paired_bootstrap(values)
    assert image_high - image_low < 0.6 * width


def test_copies_of_an_image_in_its_group_add_no_certainty():
    values = np.random.default_rng(0).normal(size=30)
    alone = paired_bootstrap(values)
    assert paired_bootstrap(np.tile(values, 4), groups=[*range(30)] * 4) == pytest.approx(alone)


def test_images_without_a_score_are_left_out():
    values, groups = [0.1, np.nan, 0.3, np.nan, 0.2], ["a", "a", "b", "c", "d"]
    assert paired_bootstrap(values, groups) == paired_bootstrap([0.1, 0.3, 0.2])


@pytest.mark.parametrize(
    ("values", "groups", "mean"),
    [([0.1, 0.3], ["a", "a"], 0.2), ([0.1], None, 0.1), ([0.1, np.nan], ["a", "b"], 0.1), ([], None, np.nan)],
)
def test_one_group_has_a_mean_and_no_interval(values, groups, mean):
    assert paired_bootstrap(values, groups) == pytest.approx((mean, np.nan, np.nan), nan_ok=True)


def test_groups_of_another_length_are_an_error():
    with pytest.raises(InputError, match="`groups` must have one entry for each of 2 differences, got 1"):
        paired_bootstrap([0.1, 0.2], ["a"])


def test_the_same_seed_draws_the_same_whatever_is_summed():
    values = np.random.default_rng(0).uniform(size=(7, 3, 2))
    sums = resampled_sums(values, seed=5)
    assert sums.shape == (2000, 3, 2)
    np.testing.assert_allclose(sums[:, 1, 0], resampled_sums(values[:, 1, 0], seed=5))
    assert (sums != resampled_sums(values, seed=6)).any()


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([[1, 1], [-1, -1]], 1),
        ([[1, -1], [-1, 1]], -1),
        ([[1, 1], [-1, -1], [1, -1], [-1, 1]], 0),
        ([[2, 1, 0], [0, 1, 2]], -1 / 2),  # covariances -2, 0, 0; variances 2, 0, 2
        ([[1, 1]], np.nan),
        ([[1], [2]], np.nan),
        ([[1, 2], [1, 2]], np.nan),
    ],
)
def test_fold_correlation_by_hand(differences, expected):
    assert fold_correlation(differences) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("correlation", "folds"), list(itertools.product([0, 0.3, 0.8], [3, 10])))
def test_fold_correlation_finds_the_one_that_was_drawn(correlation, folds):
    assert fold_correlation(equicorrelated(correlation, 4000, folds)) == pytest.approx(correlation, abs=0.04)


def test_neither_tensorflow_nor_keras_is_imported():
    code = "import sys, segdrop.scoring.statistics; print({'tensorflow', 'keras', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
