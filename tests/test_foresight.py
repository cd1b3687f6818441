"""What a sweep could tell before it is run."""

import math
from pathlib import Path

import pytest

from segdrop.errors import InputError
from segdrop.scoring.designs import Design
from segdrop.sweeps.foresight import Spread, pilot_spread, proposals, stated_spread, what_it_tells


def test_the_spread_of_an_earlier_sweep_has_an_interval():
    """Two arms in two folds: one degree of freedom, of which the 95% interval reaches from 0.45 to 31.9 times."""
    spread = pilot_spread(Path(__file__).parent / "made_by_0_4" / "sweep")
    assert spread.std == pytest.approx(0.000137 / math.sqrt(2), rel=0.01)  # of one, not of a difference
    assert (spread.low / spread.std, spread.high / spread.std) == pytest.approx((0.446, 31.91), rel=1e-3)
    assert "4 trainings" in spread.source


@pytest.mark.parametrize("empty", [True, False])
def test_a_pilot_that_is_no_sweep_is_named_by_its_option(empty, tmp_path):
    with pytest.raises(InputError, match="`pilot`: .* (has no sweep.json|does not exist)"):
        pilot_spread(tmp_path if empty else tmp_path / "nowhere")


@pytest.mark.parametrize("wrong", [0, -0.01, 0.6, math.nan, "much", True])
def test_a_spread_that_is_none_is_told(wrong):
    with pytest.raises(InputError, match="`spread` must be a standard deviation of Dice in"):
        stated_spread(wrong)


def test_a_measured_spread_tells_a_range():
    told = what_it_tells(Design(arms=4, folds=5), Spread(0.02, 0.015, 0.03, "of a pilot"))
    design = Design(arms=4, folds=5)
    for std in (0.02, 0.015, 0.03):
        assert f"{design.detectable(std):.3f}" in told
    assert " only" not in what_it_tells(design, stated_spread(0.02))


def test_proposals_tell_what_is_asked_and_are_the_cheapest_that_do():
    found = proposals(0.03, stated_spread(0.01), arms=4, seconds=60)
    assert [one.arms for one in found] == [4, 3, 2, 1]
    for one in found:
        assert one.detectable <= 0.03 and one.seconds == 60 * one.trainings
        fewer = one.folds * one.repeats - 1
        for folds in (3, 5, 10):
            if repeats := fewer // folds:
                design = Design(one.arms, folds, repeats, one.reference_seeds)
                assert design.detectable(0.01) > 0.03


def test_little_time_leaves_fewer_arms():
    everything = proposals(0.03, stated_spread(0.01), arms=4, seconds=60)
    some = proposals(0.03, stated_spread(0.01), arms=4, seconds=60, hours=everything[2].seconds / 3600)
    assert max(one.arms for one in some) < 4 and all(one.seconds <= everything[2].seconds for one in some)


@pytest.mark.parametrize(
    ("detect", "hours", "message"),
    [
        (0.001, None, "`detect` 0.001 can be told by no sweep of one arm .* times as many patients would be needed"),
        (0.03, 0.01, "`hours` 0.01 are too few to tell 0.03: one arm with .* takes .* hours"),
        (0, None, "`detect` must be a difference"),
        (0.03, 0, "`hours` must be a positive number"),
    ],
)
def test_what_no_sweep_or_no_time_can_do_is_told_with_what_would(detect, hours, message):
    with pytest.raises(InputError, match=message) as error:
        proposals(detect, stated_spread(0.01), arms=4, seconds=60, hours=hours)
    assert "\n" not in str(error.value)
