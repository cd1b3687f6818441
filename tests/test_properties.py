"""What holds for all inputs, looked for by hypothesis: HYPOTHESIS_PROFILE=long looks eighty times longer."""

import dataclasses
import itertools
import json
import math
import os
import types
import typing

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segdrop import InputError, SweepConfig, TrainConfig
from segdrop.config.arms import arms_of, changes_of, config_of, key_of, name_of
from segdrop.conventions import IGNORED
from segdrop.data.splits import cross_validation, part_of, split_dataset
from segdrop.data.tiles import in_tiles, padded, tile_offsets
from segdrop.scoring.comparison import compare
from segdrop.scoring.counts import confusion_counts, dice_from_counts, iou_from_counts
from segdrop.scoring.dunnett import largest_exceeds, simultaneous_quantile
from segdrop.scoring.statistics import corrected_paired_test, holm, paired_bootstrap
from segdrop.scoring.surfaces import hausdorff95, surface_dice
from segdrop.scoring.tally import Tally

unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}
settings.register_profile("suite", derandomize=True, max_examples=25, database=None, **unhurried)
settings.register_profile("long", max_examples=2_000, **unhurried)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

SIDES = st.integers(1, 12)


@st.composite
def label_maps(draw, number, classes=3, ignored=True):
    """So many maps of class indices of one shape, the first with pixels that are not scored."""
    shape = draw(st.tuples(SIDES, SIDES))
    values = st.integers(0, classes - 1)
    first = st.one_of(values, st.just(IGNORED)) if ignored else values
    return [draw(arrays(np.uint8, shape, elements=first if not i else values)) for i in range(number)]


# Overlap


@given(label_maps(2))
def test_dice_and_iou_lie_in_0_to_1_and_tell_the_same(maps):
    counts = confusion_counts(*maps, classes=3)
    dice, iou = dice_from_counts(counts), iou_from_counts(counts)
    defined = ~np.isnan(dice)
    assert (np.isnan(iou) == ~defined).all()
    assert ((dice[defined] >= 0) & (dice[defined] <= 1) & (iou[defined] <= dice[defined])).all()
    np.testing.assert_allclose(dice[defined], 2 * iou[defined] / (1 + iou[defined]))


@given(label_maps(2, ignored=False))
def test_dice_is_the_same_with_truth_and_prediction_exchanged(maps):
    one, other = (dice_from_counts(confusion_counts(*order, classes=3)) for order in (maps, maps[::-1]))
    np.testing.assert_array_equal(one, other)


@given(label_maps(2), st.randoms(use_true_random=False))
def test_overlap_does_not_know_where_pixels_lie(maps, random):
    order = list(range(maps[0].size))
    random.shuffle(order)
    shuffled = [one.ravel()[order] for one in maps]
    np.testing.assert_array_equal(confusion_counts(*maps, classes=3), confusion_counts(*shuffled, classes=3))


@given(label_maps(1))
def test_a_perfect_prediction_has_a_dice_of_1_in_every_class_that_is_there(maps):
    (truth,) = maps
    dice = dice_from_counts(confusion_counts(truth, np.where(truth == IGNORED, 0, truth), classes=3))
    np.testing.assert_array_equal(dice, [1.0 if (truth == k).any() else math.nan for k in range(3)])


@given(label_maps(2, classes=2, ignored=False))
def test_distances_of_boundaries_are_the_same_both_ways_and_turned(maps):
    truth, pred = maps
    for turn in (lambda one: one, np.fliplr, np.rot90):
        one, other = turn(truth).copy(), turn(pred).copy()
        np.testing.assert_allclose(hausdorff95(one, other), hausdorff95(pred, truth), rtol=1e-6)  # of float32
        np.testing.assert_equal(surface_dice(one, other, 1.0), surface_dice(pred, truth, 1.0))


@given(label_maps(2, classes=2, ignored=False), st.floats(0, 5), st.floats(0, 5))
def test_surface_dice_grows_with_the_tolerance(maps, first, second):
    low, high = (surface_dice(*maps, tolerance) for tolerance in sorted((first, second)))
    assert (math.isnan(low) and math.isnan(high)) or 0 <= low <= high <= 1


@given(label_maps(1, classes=2), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.5, 2.0]))
def test_what_images_add_up_to_is_what_they_are_as_one(maps, seed, temperature):
    """Counts, calibration, Brier score and histograms of two images together are those of the two side by side."""
    rng = np.random.default_rng(seed)
    truths = [maps[0], maps[0][::-1].copy()]
    probabilities = [rng.uniform(0, 1, (*one.shape, 1)).astype(np.float32) for one in truths]

    def tally(*pairs):
        settings = Tally(2, False, 2.0, tune=True, threshold=0.4, temperature=temperature)
        for truth, of_image in pairs:
            settings.add([truth], [of_image], [None])
        return settings

    apart = tally(*zip(truths, probabilities, strict=True))
    whole = tally((np.concatenate(truths), np.concatenate(probabilities)))
    np.testing.assert_array_equal(sum(one["counts"] for one in apart.images), whole.images[0]["counts"])
    assert apart.sums.keys() == whole.sums.keys()
    for name, value in whole.sums.items():
        # The second table of bins is of pixels near the foreground, which lies in the other image, too.
        part = 0 if name.endswith("bins") else slice(None)
        np.testing.assert_allclose(
            np.atleast_1d(apart.sums[name])[part], np.atleast_1d(value)[part], rtol=1e-6, err_msg=name
        )


# Splits


@dataclasses.dataclass
class Groups:
    """What splits ask of a data set."""

    groups: tuple[str, ...]
    strata: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    path: str = "data"
    grouped: bool = True
    class_names: tuple[str, ...] = ("background", "cell")

    def __len__(self):
        return len(self.groups)

    def read(self, index):
        return None, np.full((4, 4), index % 5 > 0, np.uint8) * (np.arange(16).reshape(4, 4) <= index % 16)


@st.composite
def grouped_sets(draw, smallest=12, strata=True):
    groups = draw(st.lists(st.integers(0, 30).map(str), min_size=smallest, max_size=60))
    column = st.lists(st.sampled_from("ab"), min_size=len(groups), max_size=len(groups))
    return Groups(tuple(groups), tuple(draw(column)) if strata and draw(st.booleans()) else None)


def split_or_skip(function, *arguments):
    try:
        return function(*arguments)
    except InputError:
        assume(False)


def assert_partition(parts, dataset, indices):
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(indices))
    homes = [{dataset.groups[i] for i in part} for part in parts]
    assert all(not one & other for one, other in itertools.combinations(homes, 2))


@given(grouped_sets(), st.integers(0, 2**32 - 1), st.floats(0.05, 1 / 3))
def test_a_split_has_every_image_once_and_tears_no_group_apart(dataset, seed, fraction):
    split = split_or_skip(split_dataset, dataset, seed, fraction)
    assert_partition(list(split.values()), dataset, np.arange(len(dataset)))
    again = split_dataset(dataset, seed, fraction)
    assert all(np.array_equal(split[name], again[name]) for name in split)


@given(grouped_sets(20), st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_folds_have_every_image_once_and_tear_no_group_apart(dataset, seed, folds):
    indices = np.arange(0, len(dataset))
    parts = split_or_skip(cross_validation, dataset, indices, folds, seed)
    assert len(parts) == folds
    assert_partition(parts, dataset, indices)
    again = cross_validation(dataset, indices, folds, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))
    shows = [np.array([bool(dataset.read(int(i))[1].any()) for i in part]) for part in parts]
    assert all(one.any() for one in shows)


@given(st.integers(30, 90), st.integers(0, 2**32 - 1), st.integers(3, 6), st.floats(0.2, 0.8))
def test_each_fold_has_its_share_of_a_stratum_where_each_image_is_its_own_group(count, seed, folds, share):
    labels = np.random.default_rng(seed).uniform(size=count) < share
    assume(folds <= labels.sum() <= count - folds)
    dataset = Groups(tuple(map(str, range(count))), tuple(np.where(labels, "b", "a").tolist()))
    split = split_or_skip(split_dataset, dataset, seed, 1 / folds)
    for part in (split["test"], split["val"]):
        assert abs(labels[part].sum() - labels.sum() / folds) <= 1 and abs(len(part) - count / folds) <= 2


@given(grouped_sets(), st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_part_of_the_training_images_lies_within_a_larger_one(dataset, seed, first, second):
    everything = np.arange(len(dataset))
    small, large = (part_of(dataset, everything, share, seed) for share in sorted((first, second)))
    assert set(small) <= set(large) <= set(everything)
    for part in (small, large):  # whole groups of each stratum: a group counts to that of its first image
        groups = {dataset.groups[i] for i in part}
        assert {i for i in everything if dataset.groups[i] in groups} == set(part)


# Tiles


@st.composite
def tilings(draw):
    tile = 32 * draw(st.integers(1, 4))
    overlap = 32 * draw(st.integers(0, tile // 64))
    return tile, overlap, draw(st.integers(0, overlap // 2))


@given(st.integers(1, 700), tilings())
def test_tiles_cover_every_pixel_and_overlap_as_asked(length, tiling):
    tile, overlap, _ = tiling
    offsets = tile_offsets(length, tile, overlap)
    assert offsets[0] == 0 and offsets[-1] + min(tile, padded(length)) == padded(length)
    assert all(offset % 32 == 0 for offset in offsets)
    steps = np.diff(offsets)
    assert ((steps > 0) & (steps <= tile - overlap)).all()


@given(SIDES.map(lambda n: 16 * n), SIDES.map(lambda n: 13 * n), tilings(), st.integers(0, 2**32 - 1))
def test_what_is_cut_into_tiles_and_left_as_it_is_comes_together_again(height, width, tiling, seed):
    """So the weights of all tiles add up to 1 in each pixel."""
    image = np.random.default_rng(seed).uniform(0, 255, (height, width, 2)).astype(np.float32)
    np.testing.assert_allclose(in_tiles(lambda tiles: tiles, image, *tiling), image, rtol=1e-5)


# Configurations


def values_of(hint):
    """Values that a field of this hint may have, and some that it may not."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(inside)
    if origin is typing.Annotated:
        return values_of(inside[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(one) for one in inside])
    if origin is dict:
        return st.dictionaries(st.sampled_from(["stage1", "stage2", "stage3"]), values_of(inside[1]), min_size=1)
    if origin is tuple:
        if inside[-1] is Ellipsis:
            return st.lists(values_of(inside[0]), min_size=1, max_size=4).map(tuple)
        return st.tuples(*map(values_of, inside))
    simple = {
        bool: st.booleans(),
        int: st.one_of(st.integers(0, 6), st.sampled_from([32, 64, 255, 2**31])),
        float: st.one_of(st.floats(0, 1), st.sampled_from([0.99, 2.0, 1e-300, 1e300])),
        str: st.one_of(st.sampled_from(["resnet34", "keras:VGG16", "none", "é\n\"'"]), st.text(max_size=5)),
        type(None): st.none(),
    }
    return simple[hint]


FIELDS = {name: values_of(hint) for name, hint in typing.get_type_hints(TrainConfig, include_extras=True).items()}


@st.composite
def configurations(draw, most=5, without=()):
    """Valid configurations with some fields set: the fields that are impossible, alone or together, are left out."""
    names = draw(st.lists(st.sampled_from(sorted(set(FIELDS) - set(without))), max_size=most, unique=True))
    fields = {}
    for name in names:
        value = draw(FIELDS[name], label=name)
        try:
            TrainConfig(**fields, **{name: value})
        except InputError:
            continue
        fields[name] = value
    return TrainConfig(**fields)


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=max(6, settings().max_examples // 20))
@given(data=st.data())
def test_a_configuration_comes_back_from_json(name, data):
    value, others = data.draw(FIELDS[name]), data.draw(configurations(most=2, without=(name,)))
    try:
        config = dataclasses.replace(others, **{name: value})
    except InputError:
        return
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@given(configurations(without=("gpus", "resume", "run_dir", "from_sweep")), st.integers(2, 9), st.integers(0, 3))
def test_the_configuration_of_a_sweep_comes_back_from_json(train, folds, search):
    config = SweepConfig(train, {"lr": [0.1, 0.2]}, folds=folds, search=search)
    assert SweepConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


_RATES = st.one_of(
    st.floats(0, 0.99),
    st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).map(list),
    st.fixed_dictionaries({"stage3": st.floats(0, 0.9)}, optional={"stage4": st.floats(0, 0.9)}),
)
_GRIDS = st.fixed_dictionaries(
    {"encoder_dropout": st.lists(_RATES, min_size=1, max_size=3)},
    optional={
        "dropout_kind": st.lists(st.sampled_from(["element", "spatial", "block", "path"]), min_size=1, max_size=3),
        "dropout_placement": st.lists(st.sampled_from(["between_convs", "block_end"]), min_size=1, max_size=2),
        "lr": st.lists(st.floats(1e-5, 1), min_size=1, max_size=2),
        "weight_decay": st.lists(st.floats(0, 1), min_size=1, max_size=2),
    },
)


@given(_GRIDS, st.booleans())
def test_arms_differ_from_each_other_and_are_what_their_changes_say(grid, spatial):
    train = TrainConfig(spatial=spatial, encoder_dropout=0.25 if spatial else 0.0)
    try:
        arms = arms_of(SweepConfig(train, grid))
    except InputError:  # one arm alone
        assume(False)
    assert arms[0] == {} and len({key_of(arm) for arm in arms}) == len(arms)
    assert all(name_of(arm) for arm in arms)
    base = config_of(train, {})
    for arm in arms:
        assert changes_of(config_of(train, arm), base) == arm
        assert key_of(dict(reversed(arm.items()))) == key_of(json.loads(json.dumps(arm)))


# Statistics

SCORES = st.integers(0, 1000).map(lambda n: n / 1000)


@st.composite
def score_tables(draw, missing=False):
    """Scores of arms on folds, which are not all alike."""
    arms, folds = draw(st.integers(2, 5)), draw(st.integers(2, 6))
    table = draw(arrays(np.float64, (arms, folds), elements=SCORES))
    if missing:
        holes = draw(st.lists(st.tuples(st.integers(1, arms - 1), st.integers(0, folds - 1)), max_size=3))
        for hole in holes:
            table[hole] = np.nan
    return table


def told(comparison):
    return [value for value in dataclasses.astuple(comparison) if isinstance(value, float)]


@given(score_tables(missing=True), st.floats(0, 1), st.floats(0, 0.5))
def test_a_comparison_is_within_its_bounds(scores, share, margin):
    for arm in compare(scores, share, margin=margin).arms[1:]:
        if math.isnan(arm.difference):
            assert math.isnan(arm.p) and arm.verdict == "cannot be told"
            continue
        assert 0 <= arm.p <= arm.adjusted_p <= 1
        assert arm.low <= arm.difference <= arm.high
        assert arm.simultaneous_low <= arm.low + 1e-9 and arm.high <= arm.simultaneous_high + 1e-9
        assert min(arm.helps, arm.equal, arm.hurts) >= 0
        assert arm.helps + arm.equal + arm.hurts == pytest.approx(1, abs=1e-6)


@given(score_tables(), st.data())
def test_a_comparison_does_not_know_the_order_of_arms_and_folds(scores, data):
    arms = [0, *data.draw(st.permutations(range(1, len(scores))))]
    folds = data.draw(st.permutations(range(scores.shape[1])))
    usual, moved = compare(scores, 0.5), compare(scores[arms][:, folds], 0.5)
    for place, arm in enumerate(arms):
        np.testing.assert_allclose(told(moved.arms[place]), told(usual.arms[arm]), rtol=1e-5, atol=1e-7)
        assert moved.arms[place].verdict == usual.arms[arm].verdict


@given(score_tables(), st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6))
def test_folds_that_are_harder_for_all_arms_change_nothing(scores, shifts):
    assume(compare(scores, 0.5).std > 1e-4)  # where nothing varies, rounding would
    usual, shifted = (compare(table, 0.5) for table in (scores, scores + np.array(shifts)[: scores.shape[1]]))
    for one, other in zip(usual.arms, shifted.arms, strict=True):
        np.testing.assert_allclose(told(one), told(other), rtol=1e-4, atol=1e-6)


@given(st.floats(0, 8), st.integers(1, 60), st.lists(st.floats(0, 0.95), min_size=1, max_size=6))
def test_dunnetts_p_lies_between_that_of_one_comparison_and_bonferronis(statistic, degrees, correlations):
    from scipy import stats

    single = 2 * stats.t.sf(statistic, degrees)
    together = largest_exceeds(statistic, degrees, [correlations])
    assert single - 1e-4 <= together <= min(1, len(correlations) * single) + 1e-4


@given(st.floats(0.5, 0.99), st.integers(1, 60), st.integers(1, 6))
def test_dunnetts_quantile_is_where_its_p_is(confidence, degrees, number):
    families = [[0.5**0.5] * number]
    quantile = simultaneous_quantile(confidence, degrees, families)
    assert largest_exceeds(quantile, degrees, families) == pytest.approx(1 - confidence, abs=1e-3)


@given(st.lists(st.integers(-500, 500).map(lambda n: n / 1000), min_size=2, max_size=12), st.floats(0, 1), st.data())
def test_a_paired_test_is_within_its_bounds_and_turns_with_its_sign(differences, share, data):
    test = corrected_paired_test(differences, share)
    assert 0 <= test.p <= 1 and test.low <= test.mean <= test.high
    turned = corrected_paired_test([-one for one in data.draw(st.permutations(differences))], share)
    np.testing.assert_allclose([turned.p, turned.low, turned.high], [test.p, -test.high, -test.low], atol=1e-9)
    assert corrected_paired_test(differences, share + 1).p >= test.p


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=10), st.data())
def test_holms_p_are_no_smaller_keep_their_order_and_do_not_know_that_of_the_comparisons(p_values, data):
    adjusted = holm(p_values)
    order = data.draw(st.permutations(range(len(p_values))))
    np.testing.assert_array_equal(holm([p_values[i] for i in order]), adjusted[list(order)])
    for one, other in itertools.product(zip(p_values, adjusted, strict=True), repeat=2):
        assert (math.isnan(one[0]) and math.isnan(one[1])) or one[0] <= one[1] <= 1
        assert not one[0] < other[0] or one[1] <= other[1]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(0, 100))
def test_a_bootstrap_lies_within_the_differences(differences, seed):
    mean, low, high = paired_bootstrap(differences, seed=seed, resamples=200)
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    assert min(differences) - 1e-9 <= mean <= max(differences) + 1e-9
