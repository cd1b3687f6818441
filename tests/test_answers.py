"""The answer of a sweep: numbers worked out by hand, what is compared with what, and what is said of it.

With two degrees of freedom the two-sided p value of t is 1 - sqrt(t^2 / (t^2 + 2)), and the 97.5% quantile 4.30265.
"""

import dataclasses
import html
import io
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import read_csv
from matplotlib.figure import Figure

from segdrop import compare
from segdrop.scoring.designs import Design, Needed
from segdrop.scoring.learning import fit_curves
from segdrop.show import plots
from segdrop.sweeps import answer_files, wording
from segdrop.sweeps.answer_files import tables, write_answer
from segdrop.sweeps.answer_page import write_answer_page
from segdrop.sweeps.comparing import answer
from segdrop.sweeps.results import Arm, Failure, Results, Training

FOLDS = (0.80, 0.82, 0.84)  # Dice at rate 0
CLEAR = (0.05, 0.04, 0.06)  # of t^2 = 0.05^2 / (0.01^2 (1/3 + 1/2)) = 30
UNCLEAR = (0.03, 0.02, 0.04)  # of t^2 = 10.8
WEAK = (0.03, -0.01, 0.01)  # of t^2 = 0.3
P_CLEAR, P_UNCLEAR, P_WEAK = (1 - math.sqrt(square / (square + 2)) for square in (30, 10.8, 0.3))
NONE = Arm("none", 0.0, "none", 0, {})


def arm(rate, kind="spatial", reference=0, **options):
    return Arm(f"{kind} {rate}", rate, kind, reference, {"encoder_dropout": rate, "dropout_kind": kind}, **options)


def trained(index, dice, repeat=0, seed=0, images=None, **scores):
    """One training for each fold; images b{fold}a and b{fold}b have the fold's Dice unless they are given."""
    return [
        Training(
            **{
                "arm": index,
                "repeat": repeat,
                "fold": fold,
                "seed": seed,
                "dice": value,
                "iou": value - 0.1,
                "train_dice": value + 0.07,
                "best_epoch": 9,
                "epochs": 20,
                "seconds": 120.0,
                "ece": 0.03,
                "ece_foreground": 0.2,
                "brier": 0.05,
                "images": {f"b{fold}a": value, f"b{fold}b": value} if images is None else images[fold],
                **scores,
            }
        )
        for fold, value in enumerate(dice)
    ]


def sweep(*differences, arms=None, trainings=None, **fields):
    """Three folds at rate 0, and those of one arm for each triple of differences from them."""
    rates = [round(0.1 * (i + 1), 1) for i in range(len(differences))]
    made = trained(0, FOLDS)
    for i, values in enumerate(differences):
        made += trained(i + 1, [base + value for base, value in zip(FOLDS, values, strict=True)])
    return Results(
        **{
            "title": "Dropout on cells",
            "facts": {"data": "data/cells"},
            "arms": [NONE, *map(arm, rates)] if arms is None else arms,
            "folds": 3,
            "repeats": 1,
            "seeds": (0,),
            "test_share": 0.5,
            "trainings": made if trainings is None else trainings,
            "failures": (),
            "groups": None,
            **fields,
        }
    )


def about(found, index):
    """What the sentences say of an arm that is not the first."""
    start = wording._phrase(found.arms[index].arm)
    return next(one for one in found.sentences if start in one or one.startswith(wording.capital(start)))


def test_two_arms_and_three_folds_give_the_numbers_worked_out_by_hand():
    found = answer(sweep(UNCLEAR))
    none, one = found.arms
    assert none.comparison is None
    assert none.means["dice"] == pytest.approx(0.82) and one.means["dice"] == pytest.approx(0.85)
    assert one.means["iou"] == pytest.approx(0.75) and one.means["gap"] == pytest.approx(0.07)
    named = [one.means[name] for name in ("ece", "ece_foreground", "brier", "best_epoch", "epochs", "seconds")]
    assert named == pytest.approx([0.03, 0.2, 0.05, 9, 20, 120])
    comparison = one.comparison
    assert comparison.difference == pytest.approx(0.03)
    assert comparison.test.p == pytest.approx(P_UNCLEAR) and comparison.adjusted_p == pytest.approx(P_UNCLEAR)
    half = 4.30265 * 0.01 * math.sqrt(1 / 3 + 0.5)
    assert (comparison.test.low, comparison.test.high) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    assert comparison.verdict == "cannot be told"
    assert found.chosen == 1
    assert found.fold_std == pytest.approx(math.sqrt((0.0004 + 0.0007) / 2))


def test_p_values_are_adjusted_for_all_comparisons_of_the_sweep():
    found = answer(sweep(CLEAR, UNCLEAR, WEAK))
    scores = [FOLDS, *([base + d for base, d in zip(FOLDS, arm, strict=True)] for arm in (CLEAR, UNCLEAR, WEAK))]
    assert [one.comparison.table for one in found.arms[1:]] == [*compare(scores, 0.5).arms[1:]]
    assert [one.comparison.holm_p for one in found.arms[1:]] == pytest.approx([3 * P_CLEAR, 2 * P_UNCLEAR, P_WEAK])
    assert [one.comparison.verdict for one in found.arms[1:]] == ["helps", "cannot be told", "cannot be told"]
    others = (0.001, -0.005, 0.004), (0.013, 0.009, -0.007), (-0.013, -0.006, 0.0)
    wide = answer(sweep((0.026, 0.024, 0.031), *others))
    assert "By itself it would be told" in about(wide, 1) and "By itself" not in about(wide, 3)


def test_what_is_needed_is_what_a_design_of_this_spread_needs():
    found = answer(sweep(UNCLEAR, WEAK, WEAK))
    for one in found.arms[1:]:
        needed = Design(arms=3, folds=3).needed(one.comparison.difference, found.std)
        assert one.comparison.needed == needed and needed != Needed()
    assert answer(sweep(CLEAR)).arms[1].comparison.needed == Needed()


def test_seeds_are_averaged_within_a_fold_before_anything_is_compared():
    trainings = [
        *trained(0, FOLDS),
        *trained(0, FOLDS, seed=7),
        *trained(1, [0.84, 0.83, 0.89]),
        *trained(1, [0.82, 0.85, 0.87], seed=7),
    ]
    found = answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings[::-1], seeds=(0, 7)))
    assert found.arms[1].dice.tolist() == [pytest.approx([0.83, 0.84, 0.88])]
    assert found.arms[1].comparison.test.p == pytest.approx(P_UNCLEAR)
    assert found.seed_std == pytest.approx(math.sqrt(0.02**2 / 2 / 2))  # the reference's seeds do not differ
    assert "standard deviation of 0.010 over the seeds of a fold and of 0.023 over the folds" in " ".join(
        found.sentences
    )


def test_repeats_are_further_folds():
    trainings = [
        one
        for repeat in range(2)
        for index, dice in enumerate([FOLDS, [base + value for base, value in zip(FOLDS, UNCLEAR, strict=True)]])
        for one in trained(index, dice, repeat)
    ]
    found = answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings, repeats=2))
    test = found.arms[1].comparison.test
    assert test.degrees == 5
    assert test.standard_error == pytest.approx(math.sqrt(4 / 5) * 0.01 * math.sqrt(1 / 6 + 0.5))
    assert found.arms[1].comparison.verdict == "helps"


def test_every_arm_is_compared_with_the_reference_of_its_own_settings():
    arms = [NONE, Arm("none, lr=0.0003", 0.0, "none, lr=0.0003", 1, {}), arm(0.1), arm(0.2, reference=1)]
    levels = [0.0, 0.1, 0.01, 0.11]
    trainings = [one for i, level in enumerate(levels) for one in trained(i, [base + level for base in FOLDS])]
    found = answer(sweep(arms=arms, trainings=trainings))
    assert [one.comparison and round(one.comparison.difference, 6) for one in found.arms] == [None, None, 0.01, 0.01]
    assert [answer_files._difference(found, one)["from"] for one in found.arms[2:]] == [
        "none",
        "none, lr=0.0003",
    ]


def test_images_are_paired_and_patients_drawn_as_wholes():
    before = [{"a": 0.5, "b": 0.5}, {"c": 0.5, "d": math.nan}, {"e": 0.5, "f": 0.5}]
    after = [{"a": 0.6, "b": 0.7}, {"c": 0.4, "d": 0.9}, {"e": 0.5, "f": 0.5}]
    trainings = trained(0, FOLDS, images=before) + trained(1, FOLDS, images=after)
    groups = dict.fromkeys("ab", "one") | dict.fromkeys("cd", "two") | dict.fromkeys("ef", "three")
    mean, low, high = answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings, groups=groups)).arms[1].comparison.images
    assert mean == pytest.approx((0.1 + 0.2 - 0.1) / 5)  # d is undefined at rate 0
    assert (low, high) == pytest.approx((-0.1, 0.15))  # all draws were patient two, or patient one
    assert answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings, groups=groups)).independent == 3
    assert answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings)).independent == 6


def test_images_are_averaged_over_seeds_and_repeats_before_patients_are_drawn():
    flat, high = [{"a": 0.5}, {"b": 0.5}, {"c": 0.5}], [{"a": 0.9}, {"b": 0.7}, {"c": 0.5}]
    trainings = [
        *trained(0, FOLDS, images=flat),
        *trained(0, FOLDS, images=flat, seed=1),
        *trained(1, FOLDS, images=flat),
        *trained(1, FOLDS, images=high, seed=1),
    ]
    found = answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings, seeds=(0, 1)))
    assert found.arms[1].comparison.images == pytest.approx((0.1, 0.0, 0.2))


def test_unfinished_failed_and_pruned_arms_are_named_and_never_compared():
    results = sweep(CLEAR, CLEAR, CLEAR, CLEAR)
    arms = [*results.arms[:4], arm(0.4, pruned=True)]
    gone = {(1, 2), (2, 0), (2, 1), (4, 1), (4, 2)}
    trainings = [one for one in results.trainings if (one.arm, one.fold) not in gone]
    failures = [
        Failure(2, 0, 0, 0, "out of\nmemory"),
        Failure(2, 0, 1, 0, "disk full"),
        Failure(3, 0, 0, 0, "has succeeded since"),
    ]
    found = answer(sweep(arms=arms, trainings=trainings, failures=failures))
    assert [one.state for one in found.arms] == ["complete", "incomplete", "failed", "complete", "pruned"]
    assert [index for index, one in enumerate(found.arms) if one.comparison] == [3]
    assert found.arms[2].reason == "out of\nmemory" and found.arms[3].reason == ""
    assert (found.trained, found.expected) == (10, 13)
    assert found.arms[1].dice[0, :2].tolist() == pytest.approx([0.85, 0.86]) and math.isnan(found.arms[1].dice[0, 2])
    assert found.headline == (
        "So far, with 10 of 13 trainings done, whether dropout helps on these data cannot be told: with spatial "
        "dropout of 0.3 the difference of Dice is +0.050 (95% interval -0.001 to 0.101, adjusted p 0.052)."
    )
    assert found.sentences[:4] == [
        "10 of 13 trainings are done, 2 failed.",
        "Not compared until they are complete: spatial 0.1 (2 of 3 trained).",
        "Not all are compared: spatial 0.2 (1 of 3 trained, 2 failed).",
        "Dropped by the search after the first fold, and not compared: 1 arm.",
    ]


def test_an_arm_that_failed_in_a_fold_is_compared_on_the_others():
    results = sweep(CLEAR, UNCLEAR, folds=3)
    trainings = [one for one in results.trainings if (one.arm, one.fold) != (1, 2)]
    found = answer(sweep(arms=results.arms, trainings=trainings, failures=[Failure(1, 0, 2, 0, "out of memory")]))
    scores = [FOLDS, (0.85, 0.86, math.nan), [base + d for base, d in zip(FOLDS, UNCLEAR, strict=True)]]
    expected = compare(scores, 0.5).arms[1]
    assert found.arms[1].comparison.adjusted_p == pytest.approx(expected.adjusted_p)
    assert found.arms[1].comparison.difference == pytest.approx(expected.difference)
    assert "1 training of it failed: it is compared on 2 of 3 folds." in about(found, 1)
    assert found.arms[1].state == "failed" and found.chosen == 2


def test_without_a_reference_there_is_no_answer():
    results = sweep(CLEAR)
    found = answer(sweep(arms=results.arms, trainings=results.trainings[1:]))
    assert found.arms[1].state == "complete" and found.arms[1].comparison is None
    assert found.headline.startswith("So far, with 5 of 6 trainings done, there is no answer")
    failures = [Failure(0, 0, fold, 0, "out of memory") for fold in (0, 1)]
    stopped = answer(sweep(arms=results.arms, trainings=results.trainings[2:], failures=failures))
    assert stopped.headline.startswith("There is no answer")


def test_further_seeds_of_the_reference_narrow_the_intervals_and_it_is_said():
    reference = dataclasses.replace(NONE, seeds=(0, 1, 2))
    luck = np.random.default_rng(2).normal(0.8, 0.01, (8, 3, 3))
    once = [one for i in range(8) for one in trained(i, luck[i, :, 0])]
    more = [one for seed in (1, 2) for one in trained(0, luck[0, :, seed], seed=seed)]
    rest = [arm(round(0.1 * i, 1)) for i in range(1, 8)]
    found = answer(sweep(arms=[reference, *rest], trainings=[*once, *more]))
    assert (found.trained, found.expected, found.arms[0].state) == (30, 30, "complete")
    alone = found.std * math.sqrt(2 / 3 + 2 / 2)  # with one seed, for the same spread
    assert found.gained == pytest.approx(1 - found.arms[1].comparison.table.standard_error / alone)
    assert f"narrowed the intervals by {100 * found.gained:.0f}%" in " ".join(found.about_the_sweep)
    assert found.arms[0].dice.tolist() == [pytest.approx(luck[0].mean(axis=1))]
    assert 0.03 < found.gained < 1 - math.sqrt((4 / 9 + 1) / (2 / 3 + 1)) + 0.01


def test_an_arm_that_varies_more_than_the_others_is_said_to_have_its_own_spread():
    calm = [(d, d + 0.001, d - 0.001) for d in (0.01, 0.0, 0.005, 0.012, 0.003)]
    found = answer(sweep(*calm, (0.2, -0.2, 0.1)))
    assert found.apart == (6,) and not found.arms[6].comparison.table.pooled
    assert "Dice varies more over the folds than with the other arms: spatial 0.6." in " ".join(found.about_the_sweep)
    assert about(found, 6).endswith("so that its own spread is taken.")


def test_a_reference_that_varies_more_than_the_arms_is_said_to_have_its_own_spread():
    alike = [(d + 0.06, d - 0.05, d + 0.02) for d in (0.01, 0.0, 0.005, 0.012, 0.003)]  # only the reference is not
    found = answer(sweep(*alike))
    assert (found.noisy, found.apart) == ((0,), ())
    assert "What others are compared with, none, varies more over the folds" in " ".join(found.about_the_sweep)


def test_what_was_stated_beforehand_is_told_beside_the_arms(tmp_path):
    found = answer(sweep(CLEAR, UNCLEAR, contrasts={"spatial, mean of 2 rates": [-1, 0.5, 0.5]}))
    assert found.contrasts["spatial, mean of 2 rates"].difference == pytest.approx(0.04)
    assert found.sentences[-1].startswith("Stated beforehand: spatial, mean of 2 rates: +0.040 [+0.0")
    path = write_answer(tmp_path, found)
    assert cells(path, "Differences")["spatial, mean of 2 rates"][-1] == "helps"


def test_the_margin_decides_what_does_not_matter():
    near = [(0.004, 0.006, 0.005), (0.006, 0.004, 0.005), (0.005, 0.005, 0.006)]
    found = answer(sweep(*near, margin=0.02))
    assert found.headline.startswith(
        "Dropout makes no difference of Dice beyond 0.02 on these data, in none of 3 settings; the largest, with"
    )
    assert about(found, 1).startswith("Spatial dropout of 0.1 makes no difference beyond 0.02: +0.005")
    assert answer(sweep(*near, margin=0.001)).headline.startswith("Dropout helps")


def test_a_gain_is_told_in_labels_where_fractions_were_trained():
    half = {"train_fraction": 0.5}
    arms = [
        dataclasses.replace(NONE, labelled=40.0),
        dataclasses.replace(arm(0.1), labelled=40.0),
        Arm("none, train_fraction=0.5", 0.0, "", 2, half, labelled=20.0),
        Arm("spatial 0.1, train_fraction=0.5", 0.1, "", 2, {**arm(0.1).changes, **half}, labelled=20.0),
    ]
    levels = [FOLDS, [0.82, 0.84, 0.86], [0.76, 0.78, 0.80], [0.80, 0.82, 0.84]]
    trainings = [one for i, dice in enumerate(levels) for one in trained(i, dice)]
    found = answer(sweep(arms=arms, trainings=trainings))
    expected = fit_curves([[levels[2], levels[0]], [levels[3], levels[1]]], [20, 40], 0.5)
    assert found.worths == {1: expected[0].worth(expected[1])}
    assert found.sentences[-1] == (
        f"Spatial dropout of 0.1 is {found.worths[1].in_words('images')}, by the learning curve of what it is compared "
        "with."
    )


def test_arms_without_dropout_are_told_apart_from_dropout():
    other = Arm("weight averaging 0.99", 0.0, "weight averaging 0.99", 0, {"ema": 0.99})
    found = answer(sweep(WEAK, CLEAR, arms=[NONE, arm(0.1), other]))
    assert found.headline.startswith("Whether dropout helps on these data cannot be told: with spatial dropout of 0.1")
    assert "; without dropout, weight averaging 0.99 raises Dice by 0.050 (95%" in found.headline
    assert answer(sweep(WEAK, WEAK, arms=[NONE, arm(0.1), other])).headline.endswith(
        "; of 1 setting without dropout none is shown to help."
    )


BLANK = (0.15, 0.155, 0.15)  # of 9% of the pixels, all called foreground: 2 x 0.09 / 1.09 = 0.165


def test_a_sweep_whose_networks_have_learnt_nothing_gives_no_verdict(tmp_path):
    """By their numbers alone it would be one: "helps" at an adjusted p of 0.03."""
    levels = [BLANK, [base + value / 10 for base, value in zip(BLANK, CLEAR, strict=True)]]
    constant = 2 * 0.09 / 1.09
    trainings = [one for i, dice in enumerate(levels) for one in trained(i, dice, constant_dice=constant)]
    arms = [NONE, arm(0.1)]
    known = answer(sweep(arms=arms, trainings=trained(0, BLANK) + trained(1, levels[1]), margin=0.001))
    assert known.headline.startswith("Dropout helps")
    found = answer(sweep(arms=arms, trainings=trainings))
    assert found.nothing_learnt and [one.comparison for one in found.arms] == [None, None]
    assert found.headline == (
        "Nothing was learnt, so that nothing can be told of dropout: the best validation Dice of all trainings is "
        "0.159, and one class for all pixels of these images has 0.165; train longer, try another learning rate, and "
        "look whether the masks belong to their images."
    )
    text = write_answer(tmp_path, found).read_text(encoding="utf-8")
    assert "## Differences" not in text and "helps on" not in text and "cannot be told" not in text
    assert [row["verdict"] for row in tables(found)[1]] == ["reference", "complete"]


def test_one_training_that_has_learnt_makes_a_sweep_comparable():
    trainings = trained(0, (*FOLDS[:2], 0.15), constant_dice=0.16) + trained(1, FOLDS, constant_dice=0.16)
    found = answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings))
    assert not found.nothing_learnt and found.arms[1].comparison is not None
    assert "Nothing was learnt in 1 of 6 trainings" in " ".join(found.about_the_sweep)


def test_trainings_of_an_unknown_baseline_count_as_having_learnt():
    assert not answer(sweep(arms=[NONE, arm(0.1)], trainings=trained(0, BLANK) + trained(1, BLANK))).nothing_learnt


def test_a_best_epoch_that_is_the_last_is_said():
    trainings = trained(0, FOLDS, best_epoch=19) + trained(1, FOLDS)
    said = " ".join(answer(sweep(arms=[NONE, arm(0.1)], trainings=trainings)).about_the_sweep)
    assert "In 3 of 6 trainings the best epoch is the last: they were still improving" in said
    assert "the best epoch is the last" not in " ".join(answer(sweep(CLEAR)).about_the_sweep)


def test_nothing_trained_is_an_answer_too(tmp_path):
    found = answer(sweep(arms=[NONE, arm(0.1)], trainings=[]))
    assert found.chosen is None and found.sentences[0] == "0 of 6 trainings are done."
    write_answer(tmp_path, found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.csv", "answer.md"]


def test_an_arm_of_undefined_dice_is_neither_compared_nor_chosen():
    arms = [arm(0.1, reference=1), Arm("none", 0.0, "none", 1, {}), arm(0.2, reference=1)]
    levels = [(0.8, math.nan, 0.9), FOLDS, [base + value for base, value in zip(FOLDS, CLEAR, strict=True)]]
    trainings = [one for i, dice in enumerate(levels) for one in trained(i, dice)]
    found = answer(sweep(arms=arms, trainings=trainings))
    assert [one.comparison is None for one in found.arms] == [True, True, False]
    assert found.chosen == 2
    assert "Not compared, as the Dice of a fold is undefined: spatial 0.1." in found.sentences


def test_arms_that_a_search_has_dropped_count_among_the_comparisons():
    """By itself 0.0319 is below 0.05; among three comparisons it is not."""
    alone = answer(sweep(CLEAR)).arms[1].comparison
    arms = [NONE, arm(0.1), arm(0.2, pruned=True), arm(0.3, pruned=True)]
    found = answer(sweep(CLEAR, arms=arms))
    beside = found.arms[1].comparison
    assert (alone.adjusted_p, alone.verdict) == (pytest.approx(P_CLEAR), "helps")
    together = compare([FOLDS, [0.85, 0.86, 0.90]], 0.5, further=2).arms[1].adjusted_p
    assert (beside.adjusted_p, beside.verdict) == (pytest.approx(together), "cannot be told")
    assert P_CLEAR < together < 3 * P_CLEAR and beside.holm_p == pytest.approx(3 * P_CLEAR)
    assert any("for 3 comparisons, dropped arms among them" in one for one in answer_files._method(found))


def test_a_pruned_arm_is_not_compared_even_if_its_only_fold_is_all_there_is():
    found = answer(sweep(arms=[NONE, arm(0.1, pruned=True)], trainings=sweep(CLEAR).trainings))
    assert found.arms[1].state == "pruned" and found.arms[1].comparison is None and found.chosen == 0


def test_of_equal_arms_the_lower_rate_is_chosen():
    trainings = [one for i in range(4) for one in trained(i, FOLDS)]
    ramp = Arm("spatial 0.05..0.3", None, "spatial", 3, {})
    arms = [ramp, arm(0.2, reference=3), arm(0.1, reference=3), Arm("none", 0.0, "none", 3, {})]
    assert answer(sweep(arms=arms, trainings=trainings)).chosen == 3
    assert answer(sweep(arms=arms, trainings=[one for one in trainings if one.arm < 3])).chosen == 2


@pytest.mark.parametrize(
    "differences, said",
    [
        (
            CLEAR,
            "Spatial dropout of 0.1 helps: Dice is higher by 0.050 (95% interval 0.011 to 0.089, adjusted p 0.032).",
        ),
        (
            [-value for value in CLEAR],
            "Spatial dropout of 0.1 hurts: Dice is lower by 0.050 (95% interval 0.011 to 0.089, adjusted p 0.032).",
        ),
        (
            UNCLEAR,
            "Whether spatial dropout of 0.1 helps cannot be told from these 3 folds: the difference is +0.030 (95% "
            "interval -0.009 to 0.069, adjusted p 0.081), with a probability of 92% above "
            "0.01, 6% within, 2% below. If difference and spread stay as they are, 2 repeats of the "
            "cross-validation instead of 1 would be needed to tell.",
        ),
        (
            [-value for value in WEAK],
            "Whether spatial dropout of 0.1 helps cannot be told from these 3 folds: the difference is -0.010 (95% "
            "interval -0.089 to 0.069, adjusted p 0.639), with a probability of 19% above "
            "0.01, 31% within, 50% below. If difference and spread stay as they are, no number of "
            "repeats can tell it; about 62 times as many patients (about 185 instead of 3) would be needed.",
        ),
        (
            (0.0254, -0.0146, 0.0054),
            "Whether spatial dropout of 0.1 helps cannot be told from these 3 folds: the difference is +0.005 (95% "
            "interval -0.073 to 0.084, adjusted p 0.795), with a probability of 41% above "
            "0.01, 34% within, 24% below. If difference and spread stay as they are, no number of "
            "repeats can tell it; more than 100 times as many patients would be needed.",
        ),
        (
            (0.0, 0.0, 0.0),
            "Spatial dropout of 0.1 makes no difference beyond 0.01: +0.000 (95% interval 0.000 to 0.000, adjusted p "
            "1.000).",
        ),
    ],
)
def test_verdicts_are_said_in_plain_words(differences, said):
    groups = {f"b{fold}{letter}": f"patient {fold}" for fold in range(3) for letter in "ab"}
    assert answer(sweep(differences, groups=groups)).sentences[-1] == said


def test_without_groups_it_is_images_that_are_needed():
    assert "62 times as many images (about 370 instead of 6)" in answer(sweep(WEAK)).sentences[-1]


@pytest.mark.parametrize(
    "differences, said",
    [
        ([CLEAR], "Dropout helps on these data: spatial dropout of 0.1 raises Dice by 0.050 ("),
        ([[-v for v in CLEAR]], "Dropout hurts on these data: spatial dropout of 0.1 lowers Dice by 0.050 ("),
        ([[-10 * v for v in CLEAR[:2]] + [-0.5], WEAK], "No dropout is shown to help: spatial dropout of 0.1 lowers"),
        ([UNCLEAR], "Whether dropout helps on these data cannot be told: with spatial dropout of 0.1 the difference"),
        (
            [WEAK, UNCLEAR],
            "Whether dropout helps on these data cannot be told for any of 2 settings: the largest difference of Dice, "
            "with spatial dropout of 0.2, is +0.030 (",
        ),
    ],
)
def test_the_headline_says_what_is_known_of_all_arms(differences, said):
    assert answer(sweep(*differences)).headline.startswith(said)


def test_the_headline_names_the_best_and_counts_the_others():
    sure, surer, bad = (0.1, 0.1001, 0.1002), (0.2, 0.2001, 0.2002), (-0.1, -0.1001, -0.1002)
    found = answer(sweep(sure, surer, bad, WEAK))
    assert found.headline.startswith("Dropout helps on these data: spatial dropout of 0.2 raises Dice by 0.200")
    assert found.headline.endswith(", and 1 more of 4 settings help; 1 of 4 settings hurt.")


@pytest.mark.parametrize(
    "name, phrase",
    [
        ("element 0.2 at block_end", "element dropout of 0.2 at block_end"),
        ("spatial 0.2, lr=0.0003", "spatial dropout of 0.2 (lr=0.0003)"),
        ("path stage3=0.1,stage4=0.2", "path dropout of stage3=0.1,stage4=0.2"),
        ("the old way", "the old way"),
        ("none, lr=0.01", "lr=0.01"),
    ],
)
def test_arms_have_a_name_in_sentences(name, phrase):
    assert wording._phrase(Arm(name, None, name, 0, {})) == phrase


def test_scores_on_test_data_are_said_of_the_chosen_arm():
    scores = {
        "dice": 0.8,
        "dice_interval": (0.75, 0.85),
        "iou": 0.7,
        "iou_interval": (0.65, 0.75),
        "images": 12,
        "what": "the test split",
    }
    said = answer(sweep(CLEAR, test=scores)).sentences
    assert said[1] == 'The highest mean Dice, 0.870, is that of the arm "spatial 0.1".'
    assert said[2] == (
        "On the test split (12 images) it has a Dice of 0.800 [0.750, 0.850] and an IoU of 0.700 [0.650, 0.750]."
    )
    said = answer(sweep(CLEAR, test=scores | {"dice_interval": None, "iou_interval": None})).sentences
    assert said[2] == "On the test split (12 images) it has a Dice of 0.800 and an IoU of 0.700."


def cells(path, section):
    """The first table below a heading that starts with `section`: the cells of each row by that of its first column."""
    blocks = path.read_text(encoding="utf-8").split(f"\n## {section}")[1].split("\n\n")
    rows = next(block for block in blocks if block.startswith("|")).splitlines()
    assert len({len(row) for row in rows}) == 1  # aligned
    parts = [[cell.strip() for cell in row.replace("\\|", "¦").strip("|").split("|")] for row in rows]
    assert len({len(row) for row in parts}) == 1
    return {first: rest for first, *rest in parts}


def test_the_markdown_reads_back(tmp_path):
    arms = [NONE, arm(0.1), Arm("element a|b", None, "element a|b", 0, {"encoder_dropout": "0.05..0.3"})]
    results = sweep(UNCLEAR, CLEAR)
    failures = [Failure(2, 0, 1, 0, "out of\nmemory | disk")]
    trainings = [one for one in results.trainings if (one.arm, one.fold) != (2, 1)]
    found = answer(sweep(arms=arms, trainings=trainings, failures=failures))
    path = write_answer(tmp_path, found)
    assert path == tmp_path / "answer.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Dropout on cells\n\n**Dropout helps on these data: element dropout of a|b raises Dice by")
    assert "](dice.png)" in text and (tmp_path / "dice.png").read_bytes().startswith(b"\x89PNG")
    assert cells(path, "Arms")["spatial 0.1"] == ["0.850 ± 0.026", "0.750 ± 0.026", "complete"]
    assert cells(path, "Arms")["element a¦b"] == ["–", "–", "2 of 3 trained, 1 failed"]
    difference = cells(path, "Differences")["spatial 0.1"]
    told = found.arms[1].comparison.table
    assert difference[0] == f"+0.030 [{told.simultaneous_low:+.3f}, {told.simultaneous_high:+.3f}]"
    shares = " / ".join(f"{100 * share:.0f}%" for share in (told.helps, told.equal, told.hurts))
    assert difference[1:3] == [f"{told.adjusted_p:.3f}", shares]
    assert difference[3].startswith("+0.030 [+0.02") and difference[4] == told.verdict
    own = cells(path, "Each arm by itself")["spatial 0.1"]
    assert own[2:] == ["+0.030 [-0.009, +0.069]", "0.010", "0.081", "0.163"]
    assert cells(path, "Dice of single folds")["spatial 0.1"] == ["0.830", "0.840", "0.880"]
    assert cells(path, "Dice of single folds")["element a¦b"] == ["0.850", "–", "0.900"]
    assert cells(path, "IoU of single folds")["none"] == ["0.700", "0.720", "0.740"]
    assert cells(path, "Training")["none"] == ["+0.070", "0.030", "0.200", "0.0500", "10.0 of 20.0", "2.0"]
    assert cells(path, "Failed")["element a¦b"] == ["1", "2", "0", "out of memory ¦ disk"]
    assert cells(path, "What was run")["data"] == ["data/cells"]
    assert "| element a\\|b | encoder_dropout=0.05..0.3" in text
    assert "for 2 comparisons together" in text and "0.5 images of validation for one of training" in text


def test_the_csv_holds_all_numbers_in_all_digits(tmp_path):
    found = answer(sweep(UNCLEAR, WEAK))
    write_answer(tmp_path, found)
    none, one, two = read_csv(tmp_path / "answer.csv")
    comparison = found.arms[1].comparison
    assert one["arm"] == "spatial 0.1" and one["reference"] == "none" and one["chosen"] == "True"
    assert [float(one[name]) for name in ("difference", "p", "adjusted_p", "own_low", "own_p", "images_high")] == [
        comparison.difference,
        comparison.table.p,
        comparison.adjusted_p,
        comparison.test.low,
        comparison.test.p,
        comparison.images[2],
    ]
    assert [float(one[f"dice_repeat1_fold{fold}"]) for fold in (1, 2, 3)] == found.arms[1].dice[0].tolist()
    assert (one["repeats_needed"], one["patients_factor"]) == (str(comparison.needed.repeats), "")
    assert (
        two["repeats_needed"] == "" and float(two["patients_factor"]) == found.arms[2].comparison.needed.patients_factor
    )
    assert none["difference"] == none["verdict"] == "" and float(none["best_epoch"]) == 9


def test_the_csv_has_empty_cells_where_there_is_no_number(tmp_path):
    results = sweep(CLEAR)
    write_answer(tmp_path, answer(sweep(arms=results.arms, trainings=results.trainings[:-1])))
    row = read_csv(tmp_path / "answer.csv")[1]
    shown = [row[name] for name in ("state", "trained", "dice", "dice_std", "dice_repeat1_fold3")]
    assert shown == ["incomplete", "2", "", "", ""]


def test_tables_fit_a_terminal_of_100_columns():
    from rich.console import Console

    long = Arm("element 0.2 at block_end", 0.2, "element at block_end", 0, {})
    results = sweep(CLEAR, UNCLEAR)
    trainings = [one for one in results.trainings if (one.arm, one.fold) != (1, 1)]
    failures = [Failure(1, 0, 1, 0, "out of memory")]
    shown = tables(answer(sweep(arms=[NONE, arm(0.1), long], trainings=trainings, failures=failures)))
    assert [table.keys[0] for table in shown] == ["sweep", "arm", "arm", "arm"]
    assert [row["verdict"] for row in shown[1]] == ["reference", "helps", "cannot be told"]
    assert shown[1][2]["difference"].startswith("+0.030 [")
    console = Console(width=100, file=io.StringIO())
    for table in shown:
        console.print(table.rich())
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith(" element 0.2 at block_end ")]
    assert "cannot be told" in lines[0]


def test_an_answer_is_written_without_tensorflow_and_keras(tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        from segdrop.sweeps.answer_files import tables, write_answer
        from segdrop.sweeps.answer_page import write_answer_page
        from segdrop.sweeps.comparing import answer
        from segdrop.sweeps.results import Arm, Results, Training
        arms = [Arm("none", 0.0, "none", 0, {{}}), Arm("spatial 0.2", 0.2, "spatial", 0, {{}})]
        scores = dict(train_dice=0.9, best_epoch=1, epochs=2, seconds=1.0, ece=0.1, ece_foreground=0.1, brier=0.1)
        made = [Training(i, 0, k, 0, 0.8 + i * k / 100, 0.7, images={{}}, **scores) for i in (0, 1) for k in (0, 1, 2)]
        found = answer(Results("t", {{}}, arms, 3, 1, (0,), 0.5, made, (), None))
        tables(found)
        write_answer(Path({str(tmp_path)!r}), found)
        write_answer_page(Path({str(tmp_path)!r}, "answer.html"), found)
        print(sorted({{"tensorflow", "keras", "optuna"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_says_what_the_text_says_and_draws_what_was_compared(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "segdrop.sweeps.answer_page.plots.forest", lambda tables, margin: drawn.extend(tables[""]) or Figure()
    )
    odd = dataclasses.replace(arm(0.3), name="spatial <b>0.3")
    found = answer(sweep(CLEAR, WEAK, CLEAR, arms=[NONE, arm(0.1), arm(0.2), odd]))
    write_answer_page(tmp_path / "answer.html", found)
    page = html.unescape((tmp_path / "answer.html").read_text(encoding="utf-8"))
    said = [found.headline, *found.sentences, *(section.title for section in answer_files.sections(found))]
    assert [one for one in said if one not in page] == []
    told = found.arms[1].comparison.table
    low, high = told.simultaneous_low, told.simultaneous_high
    assert f"<td>spatial 0.1</td><td>+0.050 [{low:+.3f}, {high:+.3f}]</td>" in page
    assert "<b>" not in (tmp_path / "answer.html").read_text(encoding="utf-8")
    assert [(one["name"], round(one["low"], 3), round(one["high"], 3)) for one in drawn[:1]] == [
        ("spatial 0.1", round(low, 3), round(high, 3))
    ]
    assert len(drawn) == 3


def test_a_page_without_a_comparison_has_no_plot(tmp_path):
    write_answer_page(tmp_path / "answer.html", answer(sweep()))
    assert "<img" not in (tmp_path / "answer.html").read_text(encoding="utf-8")


def test_a_forest_plot_marks_what_can_be_told_and_shows_every_interval_and_the_margin():
    told = [("cannot be told", -0.01, 0.05), ("helps", 0.05, 0.15), ("no difference beyond the margin", -0.01, 0.01)]
    arms = [
        {"name": name, "difference": (low + high) / 2, "low": low, "high": high, "verdict": verdict}
        for name, (verdict, low, high) in zip("abc", told, strict=True)
    ]
    figure = plots.forest({"one": arms, "two": arms[:1]}, margin=0.02)
    axes, other = figure.axes
    _, *lines = axes.lines
    assert [line.get_xdata().tolist() for line in lines[::2]] == [[low, high] for _, low, high in told]
    assert [line.get_markerfacecolor() for line in lines[1::2]] == ["white", "C0", "0.7"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.yaxis_inverted()  # the first on top
    [shaded] = axes.patches
    assert (shaded.get_x(), shaded.get_x() + shaded.get_width()) == pytest.approx((-0.02, 0.02))
    assert [one.get_title() for one in (axes, other)] == ["one", "two"]
    assert not len(plots.forest({"": arms}).axes[0].patches)


def test_forests_of_the_same_arms_name_them_once_and_cut_an_interval_that_goes_too_far():
    usual = [{"difference": 0.0, "low": -0.1, "high": 0.1, "verdict": "cannot be told"} for _ in range(3)]
    far = {"difference": 0.0, "low": -3.0, "high": 3.0, "verdict": "cannot be told"}
    arms = [{**arm, "name": f"arm {i} " * 12} for i, arm in enumerate([*usual, far])]
    figure = plots.forest({"one": arms, "two": arms})
    left, right = ([tick.get_text() for tick in axes.get_yticklabels()] for axes in figure.axes)
    assert len(left) == 4 and max(map(len, "\n".join(left).splitlines())) <= 40 and not any(right)
    assert figure.axes[0].get_xlim() == pytest.approx((-0.2, 0.2))
