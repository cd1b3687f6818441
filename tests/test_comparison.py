"""Arms compared as one table: against hand computations, published tables and other implementations."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import segdrop
from segdrop.errors import InputError
from segdrop.scoring.comparison import compare, verdict_of
from segdrop.scoring.dunnett import largest_exceeds, simultaneous_quantile
from segdrop.scoring.statistics import corrected_paired_test

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
ROOT_HALF = 0.5**0.5


def noisy(shape, seed=0, spread=0.02):
    return np.random.default_rng(seed).normal(0.8, spread, shape)


def half_width(arm):
    return (arm.simultaneous_high - arm.simultaneous_low) / 2


class TestDunnettsDistribution:
    @pytest.mark.parametrize(
        ("degrees", "values"),
        [
            (5, (2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97)),
            (10, (2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24)),
            (20, (2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95)),
            (60, (2.00, 2.27, 2.41, 2.51, 2.58, 2.64, 2.69, 2.73, 2.77)),
        ],
    )
    def test_critical_values_are_those_of_dunnetts_table_of_1964(self, degrees, values):
        for number, value in enumerate(values, 1):
            assert simultaneous_quantile(0.95, degrees, [[ROOT_HALF] * number]) == pytest.approx(value, abs=0.006)

    def test_p_values_of_dunnetts_blood_counts_are_scipys(self):
        control, a, b = [7.4, 8.5, 7.2, 8.24, 9.84, 8.32], [9.76, 8.8, 7.68, 9.36], [12.8, 9.68, 12.16, 9.2, 10.55]
        scipys = stats.dunnett(np.array(a), np.array(b), control=np.array(control), random_state=0).pvalue
        spread = sum(np.var(group, ddof=1) * (len(group) - 1) for group in (control, a, b)) / 12
        correlations = [math.sqrt(1 / 6 / (1 / 6 + 1 / n)) for n in (4, 5)]
        for group, p in zip((a, b), scipys, strict=True):
            error = math.sqrt(spread * (1 / 6 + 1 / len(group)))
            statistic = abs(np.mean(group) - np.mean(control)) / error
            assert largest_exceeds(statistic, 12, [correlations]) == pytest.approx(p, abs=1e-3)

    @pytest.mark.parametrize("degrees", [2, 8.5, 40])
    def test_it_is_the_multivariate_t_distribution(self, degrees):
        correlations = np.array([0.3, 0.5, 0.7, 0.9])
        shape = np.outer(correlations, correlations)
        np.fill_diagonal(shape, 1)
        box = [2.5] * 4
        inside = stats.multivariate_t(shape=shape, df=degrees, seed=0).cdf(box, lower_limit=[-2.5] * 4, maxpts=400_000)
        assert largest_exceeds(2.5, degrees, [correlations]) == pytest.approx(1 - inside, abs=1e-3)

    def test_one_comparison_is_students_t(self):
        assert simultaneous_quantile(0.95, 7, [[0.7]]) == pytest.approx(stats.t(7).ppf(0.975))
        assert largest_exceeds(2.0, 7, [[0.7]]) == pytest.approx(2 * stats.t(7).sf(2.0), abs=1e-9)

    @pytest.mark.parametrize("degrees", [1, 2, 4, 20])
    @pytest.mark.parametrize("p", [0.05, 1e-3, 1e-5, 1e-7])
    def test_small_probabilities_of_few_degrees_are_students(self, degrees, p):
        assert largest_exceeds(stats.t(degrees).isf(p / 2), degrees, [[0.7]]) == pytest.approx(p, rel=2e-3)

    @pytest.mark.parametrize("degrees", [1, 2, 20, 1e6])
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9999, 1 - 1e-7, 1 - 1e-11, 1 - 1e-15])
    @pytest.mark.parametrize("family", [[0.7] * 2, [0.999] * 10, [0.0] * 5])
    def test_any_confidence_can_be_had(self, degrees, confidence, family):
        single, bonferroni = (stats.t(degrees).isf((1 - confidence) / 2 / n) for n in (1, len(family)))
        assert 0.99 * single <= simultaneous_quantile(confidence, degrees, [family]) <= 1.01 * bonferroni

    def test_families_with_other_references_are_taken_as_independent(self):
        together = largest_exceeds(2.5, 1e6, [[ROOT_HALF] * 3, [ROOT_HALF] * 2])
        each = [1 - largest_exceeds(2.5, 1e6, [[ROOT_HALF] * n]) for n in (3, 2)]
        assert together == pytest.approx(1 - each[0] * each[1], abs=1e-6)


class TestOneTable:
    @pytest.mark.parametrize(
        ("name", "width"), [("dsb2018_nuclei", 0.1447), ("kvasir_seg", 0.0354), ("usgra_us", 0.0322)]
    )
    def test_intervals_of_the_stored_sweeps_are_three_to_five_times_narrower(self, name, width):
        with (EVIDENCE / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        scores = [[float(row[f"dice_repeat1_fold{fold}"]) for fold in (1, 2, 3)] for row in rows]
        compared = compare(scores, 0.5)
        assert compared.degrees == 20 and compared.apart == ()
        assert [half_width(arm) for arm in compared.arms[1:]] == pytest.approx([width] * 10, abs=6e-5)

    @pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3)])
    def test_two_arms_are_the_corrected_paired_test(self, shape):
        scores = noisy(shape)
        arm = compare(scores, 0.25).arms[1]
        cells = scores.reshape(2, 5, -1).mean(axis=2)
        test = corrected_paired_test(cells[1] - cells[0], 0.25)
        assert (arm.difference, arm.p, arm.degrees) == pytest.approx((test.mean, test.p, 4))
        assert (arm.low, arm.high) == pytest.approx((test.low, test.high))
        assert (arm.simultaneous_low, arm.simultaneous_high, arm.adjusted_p) == pytest.approx(
            (test.low, test.high, test.p)
        )

    def test_missing_trainings_are_a_regression_on_arm_and_fold(self):
        scores, share = noisy((5, 4), seed=3), 1 / 3
        scores[1, 0] = scores[3, 2] = scores[3, 3] = scores[0, 1] = np.nan
        arm, fold = np.nonzero(~np.isnan(scores))
        design = np.zeros((len(arm), 1 + 4 + 3))  # the reference in the first fold, and what differs from it
        design[:, 0] = 1
        for k in range(1, 5):
            design[arm == k, k] = 1
        for k in range(1, 4):
            design[fold == k, 4 + k] = 1
        target = scores[arm, fold]
        inverse = np.linalg.inv(design.T @ design)
        solution = inverse @ design.T @ target
        residuals = target - design @ solution
        spread = residuals @ residuals / (len(arm) - 8)
        for k, told in enumerate(compare(scores, share).arms[1:], 1):
            assert told.difference == pytest.approx(solution[k])
            assert told.standard_error == pytest.approx(math.sqrt(spread * (inverse[k, k] + 2 * share)))
            assert told.degrees == len(arm) - 8
        assert [told.folds for told in compare(scores, share).arms] == [0, 2, 3, 1, 3]

    def test_seeds_of_the_reference_narrow_all_intervals(self):
        table = np.random.default_rng(5).normal(0.8, 0.01, (200, 6, 5, 3))
        table[:, 1:, :, 1:] = np.nan
        each = [one for one in (compare(one, 0.25) for one in table[:80]) if not one.noisy]
        squares = [one.arms[1].standard_error ** 2 for one in each]
        # (1 + 1/3) / 5 for the two means, and twice 1/4 for shared images, of a variance of 0.01^2; without the seeds
        # it is 2 / 5. Folds that add nothing are known to some degrees of freedom only, which errs on the safe side.
        assert 1e-4 * (4 / 3 / 5 + 2 / 4) < np.mean(squares) < 0.96 * 1e-4 * (2 / 5 + 2 / 4)
        assert np.mean([one.std for one in each]) == pytest.approx(0.01, rel=0.08)

    def test_no_spread_at_all(self):
        compared = compare([[0.8] * 3, [0.9] * 3, [0.8] * 3], 0.5)
        assert (compared.std, compared.arms[1].adjusted_p, compared.arms[2].adjusted_p) == (0, 0, 1)
        assert [arm.verdict for arm in compared.arms[1:]] == ["helps", "no difference beyond the margin"]

    def test_what_cannot_be_compared_is_nan(self):
        scores = noisy((4, 4))
        scores[2, 1:] = np.nan  # one fold
        scores[3, :] = np.nan
        compared = compare(scores, 1 / 3)
        assert [math.isnan(arm.difference) for arm in compared.arms] == [True, False, True, True]
        assert dataclasses.astuple(compared.arms[1])[:-3] == pytest.approx(
            dataclasses.astuple(compare(scores[:2], 1 / 3).arms[1])[:-3]
        )

    def test_masked_scores_are_missing(self):
        scores = noisy((3, 4))
        masked, missing = np.ma.array(scores, mask=False), scores.copy()
        masked[1, 2], missing[1, 2] = np.ma.masked, np.nan
        assert compare(masked, 1 / 3).arms[1:] == compare(missing, 1 / 3).arms[1:]

    def test_arms_that_share_no_fold_are_not_compared(self):
        scores = np.full((2, 4), np.nan)
        scores[0, :2] = scores[1, 2:] = 0.8, 0.9
        assert math.isnan(compare(scores, 1 / 3).arms[1].difference)


class TestSpread:
    def test_a_noisy_arm_has_its_own_spread_and_the_others_do_not(self):
        scores = noisy((8, 5), seed=1)
        scores[3] += [0.3, -0.3, 0.25, -0.2, -0.1]
        compared = compare(scores, 0.25)
        assert (compared.apart, compared.noisy) == ((3,), ())
        assert [arm.pooled for arm in compared.arms[1:]] == [True, True, False, True, True, True, True]
        own, usual = np.var(scores[3] - np.delete(scores, 3, axis=0).mean(axis=0), ddof=1), compared.std**2
        arm = compared.arms[3]
        assert arm.standard_error == pytest.approx(math.sqrt((own + usual) * (1 / 5 + 1 / 4)))
        assert arm.degrees == pytest.approx((own + usual) ** 2 / (own**2 / 4 + usual**2 / (28 - 4)))
        p = 2 * stats.t(arm.degrees).sf(abs(arm.difference) / arm.standard_error)
        assert (arm.p, arm.adjusted_p) == pytest.approx((p, min(1, 7 * p)))

    def test_a_noisy_reference_is_compared_with_its_own_spread(self):
        """Welch's test: variances of the two means add up, and so do their squares over the degrees of freedom."""
        scores = noisy((8, 5), seed=1)
        scores[0] += [0.3, -0.3, 0.25, -0.2, -0.1]
        compared = compare(scores, 0.25)
        assert compared.noisy == (0,) and compared.apart == () and all(arm.pooled for arm in compared.arms[1:])
        own = np.var(scores[0] - scores[1:].mean(axis=0), ddof=1)
        usual = compared.std**2
        assert compared.arms[1].standard_error == pytest.approx(math.sqrt((own + usual) * (1 / 5 + 1 / 4)))
        assert compared.arms[1].degrees == pytest.approx((own + usual) ** 2 / (own**2 / 4 + usual**2 / (28 - 4)))
        # All comparisons have the reference's luck in common, nearly all of theirs: they are hardly more than one.
        nearly_one = simultaneous_quantile(0.95, compared.arms[1].degrees, [[math.sqrt(own / (own + usual))] * 7])
        arm = compared.arms[1]
        assert arm.simultaneous_high - arm.difference == pytest.approx(nearly_one * arm.standard_error, rel=1e-6)

    def test_where_arm_and_reference_are_noisy_neither_takes_the_common_spread(self):
        scores = noisy((12, 5), seed=1)
        scores[0] += [0.3, -0.3, 0.25, -0.2, -0.1]
        scores[3] += [0.3, 0.25, -0.4, -0.1, 0.2]
        compared = compare(scores, 0.25)
        assert (compared.apart, compared.noisy) == ((3,), (0,))
        of_reference, of_arm = (np.var(scores[i] - np.delete(scores, i, axis=0).mean(axis=0), ddof=1) for i in (0, 3))
        arm = compared.arms[3]
        assert arm.standard_error == pytest.approx(math.sqrt((of_reference + of_arm) * (1 / 5 + 1 / 4)))
        assert arm.degrees == pytest.approx((of_reference + of_arm) ** 2 / (of_reference**2 / 4 + of_arm**2 / 4))

    def test_a_noisy_reference_of_one_arm_is_as_a_noisy_arm(self):
        scores = noisy((8, 5), seed=1)
        scores[2] += [0.3, -0.3, 0.25, -0.2, -0.1]
        compared = compare(scores, 0.25, reference=[0, 0, 2, 2, 0, 0, 0, 0])
        assert (compared.apart, compared.noisy, compared.arms[3].pooled) == ((2,), (), False)

    def test_arms_that_vary_alike_are_rarely_taken_for_others(self):
        found = [compare(noisy((6, 4), seed), 1 / 3) for seed in range(200)]
        assert np.mean([0 in one.noisy for one in found]) == pytest.approx(0.25, abs=0.08)
        assert 0.1 < np.mean([any(one.apart) for one in found]) < 0.3

    @pytest.mark.parametrize(("folds", "most"), [(3, 0.075), (5, 0.055)])
    @pytest.mark.parametrize("noisy_arm", [None, 4, 0])
    def test_false_alarms_stay_rare_where_one_arm_or_the_reference_varies_more(self, folds, most, noisy_arm):
        """Eleven arms without effect, the folds as alike as the correction assumes; two standard errors are 1.5%."""
        rng, spread = np.random.default_rng(0), np.ones(11)
        if noisy_arm is not None:
            spread[noisy_arm] = 3
        tables = math.sqrt(1 / folds) * rng.standard_normal((800, 11, 1))
        tables = spread[:, None] * (tables + math.sqrt(1 - 1 / folds) * rng.standard_normal((800, 11, folds)))
        alarms = [min(arm.adjusted_p for arm in compare(one, 1 / (folds - 1)).arms[1:]) < 0.05 for one in tables]
        assert np.mean(alarms) < most + 0.015

    def test_the_spread_of_each_arm(self):
        scores = np.array([[0.0, 0.0], [0.0, 0.0], [0.1, -0.1]])
        # Residuals of the last are +-2/30 * 2, of the others half; each cell keeps 1/3 of its variance.
        assert compare(scores + 0.5, 1).spread == pytest.approx((0.0577, 0.0577, 0.1155), abs=1e-4)


class TestErrorsTogether:
    @pytest.mark.slow
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_no_effect_is_found_in_at_most_one_of_twenty_sweeps(self, seeds):
        rng, number, correlation = np.random.default_rng(seeds), 1200, 1 / 5
        shared = math.sqrt(correlation) * rng.standard_normal((number, 8, 1, 1))
        tables = shared + math.sqrt(1 - correlation) * rng.standard_normal((number, 8, 5, seeds))
        tables[:, 1:, :, 1:] = np.nan
        tables[:, 4, 2] = np.nan
        found = [any(arm.adjusted_p < 0.05 for arm in compare(table, 1 / 4).arms[1:]) for table in tables]
        assert np.mean(found) < 0.055 + 2 * math.sqrt(0.05 * 0.95 / number)


class TestAnswer:
    def test_probabilities_are_those_of_the_t_distribution(self):
        arm = compare(noisy((4, 5)), 0.25, margin=0.005).arms[2]
        t = stats.t(12, loc=arm.difference, scale=arm.standard_error)
        assert (arm.helps, arm.equal, arm.hurts) == pytest.approx(
            (t.sf(0.005), t.cdf(0.005) - t.cdf(-0.005), t.cdf(-0.005))
        )

    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (0.001, 0.05, "helps"),
            (-0.05, -0.001, "hurts"),
            (-0.009, 0.009, "no difference beyond the margin"),
            (0.002, 0.008, "no difference beyond the margin"),
            (-0.02, 0.005, "cannot be told"),
            (math.nan, math.nan, "cannot be told"),
        ],
    )
    def test_the_verdict_is_that_of_the_interval(self, low, high, verdict):
        assert verdict_of(low, high, 0.01) == verdict

    def test_without_a_margin_there_is_no_equality(self):
        arm = compare(noisy((4, 5)), 0.25, margin=0).arms[1]
        assert arm.equal == pytest.approx(0) and arm.helps + arm.hurts == pytest.approx(1)

    def test_comparisons_looked_at_before_widen_the_intervals(self):
        scores = noisy((4, 5))
        few, many = compare(scores, 0.25).arms[1], compare(scores, 0.25, further=20).arms[1]
        assert half_width(many) > half_width(few) and many.low == few.low

    def test_any_arm_can_be_the_reference(self):
        scores = noisy((4, 5))
        first, other = compare(scores, 0.25).arms[2], compare(scores, 0.25, reference=2).arms[0]
        assert other.difference == pytest.approx(-first.difference)
        each = compare(scores, 0.25, reference=[0, 0, 2, 2]).arms
        assert math.isnan(each[0].difference) and math.isnan(each[2].difference)
        assert each[3].difference == pytest.approx(scores[3].mean() - scores[2].mean())

    def test_it_is_public(self):
        assert segdrop.compare is compare


class TestContrasts:
    def test_a_kind_against_none_is_one_comparison_instead_of_four(self):
        scores = noisy((5, 5), seed=3)
        kind = {"spatial": [-1, 0.25, 0.25, 0.25, 0.25]}
        compared = compare(scores, 0.25, contrasts=kind)
        told = compared.contrasts["spatial"]
        assert told.difference == pytest.approx(scores[1:].mean() - scores[0].mean())
        assert told.standard_error == pytest.approx(compared.std * math.sqrt((1 + 1 / 4) * (1 / 5 + 1 / 4)))
        assert told.simultaneous_low == pytest.approx(told.low) and told.adjusted_p == pytest.approx(told.p)
        assert half_width(told) < min(half_width(arm) for arm in compared.arms[1:])

    def test_a_trend_in_the_rate_is_its_slope(self):
        rates = np.array([0, 0.1, 0.2, 0.3, 0.5])
        weights = (rates - rates.mean()) / ((rates - rates.mean()) ** 2).sum()
        scores = 0.8 + 0.2 * rates[:, None] + np.linspace(-0.1, 0.1, 5)
        assert compare(scores, 0.25, contrasts={"trend": weights}).contrasts["trend"].difference == pytest.approx(0.2)

    def test_two_kinds_hold_together(self):
        scores = noisy((5, 5), seed=3)
        kinds = {"spatial": [-1, 0.5, 0.5, 0, 0], "element": [-1, 0, 0, 0.5, 0.5]}
        told = compare(scores, 0.25, contrasts=kinds).contrasts
        assert half_width(told["spatial"]) > (told["spatial"].high - told["spatial"].low) / 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("scores", "arguments", "message"),
        [
            ([[0.8, 0.9]], {}, r"two of both at least, got the shape \(1, 2\)"),
            ([[0.8], [0.9]], {}, r"two of both at least, got the shape \(2, 1\)"),
            ([[0.8, math.inf], [0.9, 0.8]], {}, "infinite"),
            ([[0.8, 0.9]] * 2, {"margin": -0.01}, "`margin` must be a number in 0..0.5, got margin=-0.01"),
            ([[0.8, 0.9]] * 2, {"margin": 0.6}, "`margin`"),
            ([[0.8, 0.9]] * 2, {"margin": math.nan}, "`margin`"),
            ([[0.8, 0.9]] * 2, {"confidence": 1.0}, "`confidence`"),
            ([[0.8, 0.9]] * 2, {"reference": 2}, "`reference` must be the index of an arm, 0 to 1"),
            ([[0.8, 0.9]] * 2, {"reference": -1}, "`reference`"),
            ([[0.8, 0.9]] * 2, {"reference": [0]}, "`reference`"),
            ([[0.8, 0.9]] * 2, {"test_share": -1}, "`test_share`"),
            ([[0.8, 0.9]] * 2, {"test_share": [0.5] * 3}, "`test_share`"),
            ([[0.8, 0.9]] * 2, {"contrasts": {"a": [1, 1]}}, "add up to 0"),
            ("ab", {}, "`scores` must be numbers, or NaN where a training is missing, in rows of one length, got 'ab'"),
            ([[0.8, 0.9], [0.8]], {}, "`scores` must be numbers"),
            ([[0.8, "a"], [0.9, 0.8]], {}, "`scores` must be numbers"),
            ([[0.8, "0.8"], [0.9, None]], {}, "`scores` must be numbers"),
            (np.full((2, 2), 0.8 + 0.1j), {}, "`scores` must be numbers"),
            (np.zeros((2, 2), "datetime64[s]"), {}, "`scores` must be numbers"),
            ([[0.8, 0.9]] * 2, {"margin": np.array([0.1, 0.2])}, r"`margin` must be .*, got margin=\(0.1, 0.2\)"),
            ([[0.8, 0.9]] * 2, {"confidence": "a"}, "`confidence`"),
            ([[0.8, 0.9]] * 2, {"further": -1}, "`further` must be a whole number of at least 0, got further=-1"),
            ([[0.8, 0.9]] * 2, {"reference": np.zeros((9, 9), int)}, "`reference` must be the index of an arm, 0 to 1"),
            ([[0.8, 0.9]] * 2, {"reference": [[0], [0, 1]]}, "`reference`"),
            ([[0.8, 0.9]] * 2, {"reference": "a"}, "`reference`"),
            ([[0.8, 0.9]] * 2, {"test_share": "a"}, "`test_share` must be a number that is not negative, or 2, got"),
            ([[0.8, 0.9]] * 2, {"test_share": [[0.5], [0.5, 0.5]]}, "`test_share`"),
            ([[0.8, 0.9]] * 3, {"test_share": np.full((3, 1), 0.5)}, "`test_share`"),
            ([[0.8, 0.9]] * 2, {"contrasts": [[-1, 1]]}, "`contrasts` must map names to weights of the arms, got"),
            ([[0.8, 0.9]] * 2, {"contrasts": "a"}, "`contrasts` must map names"),
            ([[0.8, 0.9]] * 2, {"contrasts": {"a": np.zeros((9, 9))}}, "needs 2 weights"),
            ([[0.8, 0.9]] * 2, {"contrasts": {"a": [[-1], [0, 1]]}}, "needs 2 weights"),
            ([[0.8, 0.9]] * 2, {"contrasts": {"a": "ab"}}, "needs 2 weights"),
            ([[0.8, 0.9]] * 3, {"contrasts": {"a": [1e-10] * 3}}, "add up to 0"),
            ([[0.8, 0.9]] * 2, {"contrasts": {"a": [-1, 0.5, 0.5]}}, "needs 2 weights"),
            ([[0.8, 0.9]] * 3, {"contrasts": {"a": [-1, 1, 0], "b": [-1, 0.5, 0.5]}}, "'a' and 'b' overlap"),
        ],
    )
    def test_it_is_told_in_one_line(self, scores, arguments, message):
        with pytest.raises(InputError, match=message) as error:
            compare(scores, **{"test_share": 0.5, **arguments})
        assert "\n" not in str(error.value)
