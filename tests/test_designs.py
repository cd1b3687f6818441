"""The design of a sweep: who is compared with whom, with how many seeds, and what that can tell."""

import math

import numpy as np
import pytest
from scipy import stats

from segdrop import SweepConfig, compare
from segdrop.config.design import contrasts_of, references_of, seeds_of
from segdrop.errors import InputError
from segdrop.scoring.designs import Design, Needed
from segdrop.scoring.stopping import follow, levels_of, looks_of


def spatial(rate, **others):
    return {"encoder_dropout": rate, "dropout_kind": "spatial", **others}


RATES = [{}, *map(spatial, (0.1, 0.2, 0.3, 0.5))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"margin": -0.01}, "`margin` must be in 0..0.5, got margin=-0.01"),
        ({"margin": 0.51}, "`margin` must be in 0..0.5"),
        ({"reference_seeds": 0}, "`reference_seeds` must be a whole number of at least 1, or auto"),
        ({"contrasts": "all"}, "`contrasts` must be one of none, kinds, trend"),
        ({"contrasts": "kinds", "search": 3}, "`contrasts` is for a grid"),
        ({"stop_when_told": True, "search": 3}, "`stop_when_told` is for a grid"),
        ({"stop_when_told": True, "contrasts": "trend"}, "`contrasts` are compared when all is trained"),
    ],
)
def test_a_configuration_that_cannot_be_is_told_in_one_line(wrong, message):
    with pytest.raises(InputError, match=message) as error:
        SweepConfig(**wrong)
    assert "\n" not in str(error.value)


class TestReferences:
    def test_dropout_is_compared_with_the_same_training_without_and_all_else_with_training_as_it_is(self):
        arms = [{}, spatial(0.2), {"ema": 0.99}, spatial(0.2, ema=0.99)]
        assert references_of(arms) == [0, 0, 0, 2]

    def test_an_arm_of_fewer_images_is_no_answer_to_whether_fewer_help(self):
        arms = [{}, spatial(0.2), {"train_fraction": 0.5}, spatial(0.2, train_fraction=0.5)]
        assert references_of(arms) == [0, 0, 2, 2]

    def test_any_arm_can_be_what_all_are_compared_with(self):
        assert references_of(RATES, "spatial 0.2") == [2] * 5

    def test_a_reference_that_is_no_arm_is_told_with_those_that_are(self):
        with pytest.raises(InputError, match="`reference` must be the name of an arm, none; spatial 0.1; .*got 'x'"):
            references_of(RATES, "x")


class TestSeeds:
    @pytest.mark.parametrize(("number", "seeds"), [(1, 1), (2, 1), (3, 2), (4, 2), (10, 3), (16, 4)])
    def test_the_reference_has_the_root_of_the_comparisons(self, number, seeds):
        arms = [{}, *(spatial(i / 100) for i in range(1, number + 1))]
        assert [len(own) for own in seeds_of(SweepConfig(), arms)] == [seeds] + [1] * number

    def test_they_follow_those_of_the_sweep(self):
        assert seeds_of(SweepConfig(seeds=(3, 9), reference_seeds=4), RATES)[:2] == [(3, 9, 10, 11), (3, 9)]

    def test_fewer_than_the_sweeps_are_not_to_be_had(self):
        assert set(seeds_of(SweepConfig(seeds=(0, 1, 2), reference_seeds=1), RATES)) == {(0, 1, 2)}

    def test_each_reference_by_the_number_of_its_own_comparisons(self):
        arms = [*RATES, {"lr": 0.1}, spatial(0.1, lr=0.1)]
        assert [len(own) for own in seeds_of(SweepConfig(), arms)] == [2, 1, 1, 1, 1, 1, 1]

    def test_sweeps_of_before_have_none(self):
        stored = {name: value for name, value in SweepConfig().to_json().items() if name != "reference_seeds"}
        assert SweepConfig.from_json(stored).reference_seeds == 1


class TestContrasts:
    def test_each_kind_is_one(self):
        arms = [*RATES, {"encoder_dropout": 0.1, "dropout_kind": "element"}]
        arms += [{"encoder_dropout": 0.2, "dropout_kind": "element"}]
        found = contrasts_of("kinds", arms, references_of(arms))
        assert found == {
            "spatial, mean of 4 rates": [-1, 0.25, 0.25, 0.25, 0.25, 0, 0],
            "element, mean of 2 rates": [-1, 0, 0, 0, 0, 0.5, 0.5],
        }

    def test_a_trend_is_the_slope_of_a_regression(self):
        found = contrasts_of("trend", RATES, references_of(RATES))["spatial, per 0.1 of the rate"]
        scores = [0.81, 0.80, 0.84, 0.86, 0.87]
        slope = stats.linregress([0, 0.1, 0.2, 0.3, 0.5], scores).slope
        assert np.dot(found, scores) == pytest.approx(slope / 10)

    def test_one_rate_is_no_kind_to_average(self):
        with pytest.raises(InputError, match="`contrasts` kinds needs two rates of a kind"):
            contrasts_of("kinds", RATES[:2], [0, 0])


class TestDesign:
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_its_half_width_is_that_of_the_intervals(self, seeds):
        scores = np.random.default_rng(4).normal(0.8, 0.02, (6, 5, 1))
        compared = compare(scores, 1 / 4)
        design = Design(arms=5, folds=5)
        arm = compared.arms[1]
        assert design.half_width(compared.std) == pytest.approx((arm.simultaneous_high - arm.simultaneous_low) / 2)
        assert Design(arms=5, folds=5, reference_seeds=3).half_width(1) < design.half_width(1)

    def test_four_of_five_sweeps_tell_what_it_calls_detectable(self):
        rng, design = np.random.default_rng(0), Design(arms=4, folds=5)
        effect = design.detectable(0.01)
        shared = math.sqrt(1 / 5) * rng.standard_normal((300, 5, 1))  # the correlation that the correction assumes
        tables = 0.01 * (shared + math.sqrt(4 / 5) * rng.standard_normal((300, 5, 5)))
        tables *= 1 / math.sqrt(4 / 5)  # what the table shows is the spread without what folds share
        tables[:, 2] += effect
        compared = [compare(table, 1 / 4) for table in tables]
        usual = [one.arms[2].simultaneous_low > 0 for one in compared if one.arms[2].pooled and not one.noisy]
        assert np.mean(usual) == pytest.approx(0.8, abs=0.08)
        every = [one.arms[2].simultaneous_low > 0 for one in compared]
        assert np.mean(every) > 0.65  # where a spread is taken by itself less is told

    def test_needed_repeats_are_the_fewest_that_tell(self):
        needed = Design(arms=4, folds=5).needed(0.04, std=0.02)
        widths = [Design(arms=4, folds=5, repeats=n).half_width(0.02) for n in (needed.repeats - 1, needed.repeats)]
        assert widths[1] < 0.04 <= widths[0]

    def test_where_no_repeats_tell_it_is_patients(self):
        design = Design(arms=4, folds=5)
        needed = design.needed(0.01, std=0.02)
        assert needed == Needed(patients_factor=pytest.approx((design.half_width(0.02) / 0.01) ** 2))
        assert design.needed(0.1, std=0.01) == design.needed(0.0, std=0.01) == Needed()

    def test_a_design_without_arms_or_with_one_fold_is_none(self):
        for wrong in ({"arms": 0, "folds": 5}, {"arms": 1, "folds": 1}, {"arms": 1, "folds": 2, "repeats": 0}):
            with pytest.raises(InputError, match="needs an arm to compare and two folds"):
                Design(**wrong)


def grown(scores, seen):
    """What `follow` says of a table of which so many columns have ended."""
    scores = np.asarray(scores, np.float64)[:, :, None]
    ended = np.zeros(scores.shape[:2], bool)
    ended[:, :seen] = True
    hidden = np.where(ended[:, :, None], scores, np.nan)
    arms = len(scores)
    return follow(hidden, ended, 5, [1 / 4] * arms, [0] * arms, 0.01)


CLEAR = [[0.80, 0.82, 0.81, 0.80, 0.81], [0.95, 0.97, 0.961, 0.95, 0.962], [0.82, 0.83, 0.82, 0.82, 0.83]]


class TestStopping:
    def test_two_folds_are_trained_before_the_first_look(self):
        assert grown(CLEAR, 0).columns == grown(CLEAR, 1).columns == [2, 2, 2]

    def test_what_is_told_is_trained_no_further_and_the_others_are(self):
        course = grown(CLEAR, 3)
        assert course.told[1].verdict == "helps" and 1 not in course.going
        assert course.columns[1] <= 3 and course.columns[0] == max(course.columns)

    def test_in_the_end_the_best_has_a_network_of_each_fold(self):
        course = grown(CLEAR, 5)
        assert course.going == [] and course.columns[1] == 5 and set(course.told) == {1, 2}

    def test_what_a_look_has_told_stays_whatever_comes_after(self):
        told = grown(CLEAR, 3).told[1]
        later = [[*row[:3], 0.1, 0.9] if i == 1 else row for i, row in enumerate(CLEAR)]
        assert grown(later, 5).told[1] == told

    def test_the_last_look_has_nearly_the_whole_level_and_the_first_nearly_nothing(self):
        levels = levels_of(4, folds=5, repeats=1)
        assert levels[0] < 0.005 and 0.035 < levels[-1] < 0.05 and list(levels) == sorted(levels)
        assert looks_of(10) == [2, 4, 6, 8, 10]

    @pytest.mark.slow
    def test_false_alarms_stay_at_one_in_twenty_and_trainings_are_saved(self):
        rng, number = np.random.default_rng(1), 500
        alike = math.sqrt(1 / 5) * rng.standard_normal((number, 5, 1))
        tables = 0.8 + 0.01 * (alike + math.sqrt(4 / 5) * rng.standard_normal((number, 5, 5)))
        courses = [grown(table, 5) for table in tables]
        alarms = [any(told.verdict in ("helps", "hurts") for told in course.told.values()) for course in courses]
        assert np.mean(alarms) < 0.055 + 2 * math.sqrt(0.05 * 0.95 / number)
        assert np.mean([sum(course.columns) / 25 for course in courses]) < 0.7
