"""insert_dropout: what it changes, and everything that it must not change."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import ndimage

from segdrop import InputError, insert_dropout, monte_carlo, remove_dropout
from segdrop.layers import kind_of

IMAGE = np.random.default_rng(0).uniform(0, 1, (2, 16, 16, 3)).astype("float32")


@pytest.fixture(scope="module")
def small():
    """A residual network: input -> conv_a -> act_a -> conv_b -> add(act_a, conv_b) -> out."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3), name="picture")
    a = layers.ReLU(name="act_a")(layers.Conv2D(8, 3, padding="same", name="conv_a")(inputs))
    b = layers.BatchNormalization(name="bn_b")(layers.Conv2D(8, 3, padding="same", name="conv_b")(a))
    total = layers.Add(name="total")([a, b])
    return keras.Model(inputs, layers.Conv2D(1, 1, name="out")(total))


def ones_model(channels=400):
    """A model whose site `same` outputs ones, so that dropout's output is the mask itself."""
    inputs = keras.Input((8, 8, channels))
    return keras.Model(inputs, layers.Activation("linear", name="same")(inputs))


def test_inference_is_unchanged(small):
    dropped = insert_dropout(small, "act_a", 0.5)
    np.testing.assert_array_equal(dropped.predict(IMAGE, verbose=0), small.predict(IMAGE, verbose=0))


def test_training_output_differs(small):
    dropped = insert_dropout(small, "act_a", 0.5)
    assert not np.allclose(dropped(IMAGE, training=True), small(IMAGE, training=True))


def test_the_source_model_is_left_alone(small):
    before = [w.copy() for w in small.get_weights()]
    names = [layer.name for layer in small.layers]
    dropped = insert_dropout(small, "act_a", 0.5)
    dropped.set_weights([w + 1 for w in dropped.get_weights()])
    assert [layer.name for layer in small.layers] == names
    for old, now in zip(before, small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


def test_weights_keep_order_paths_and_values(small):
    dropped = insert_dropout(small, ["act_a", "conv_b"], 0.5)
    assert [w.path for w in dropped.weights] == [w.path for w in small.weights]
    for ours, theirs in zip(dropped.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("direction", ["plain to dropped", "dropped to plain"])
def test_weight_files_load_both_ways(small, tmp_path, direction):
    dropped = insert_dropout(small, "act_a", 0.5)
    source, target = (small, dropped) if direction == "plain to dropped" else (dropped, keras.models.clone_model(small))
    source.save_weights(tmp_path / "w.weights.h5")
    target.set_weights([np.zeros_like(w) for w in target.get_weights()])
    target.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(target.predict(IMAGE, verbose=0), source.predict(IMAGE, verbose=0))


def test_element_kind_drops_single_values_and_rescales_the_kept():
    mask = np.array(insert_dropout(ones_model(), "same", 0.25, seed=1)(np.ones((4, 8, 8, 400)), training=True))
    assert set(np.unique(mask)) == {0, np.float32(1 / 0.75)}
    assert abs((mask == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / mask.size)
    assert 0 < (mask[0, :, :, 0] == 0).mean() < 1


def test_spatial_kind_zeroes_whole_maps_and_rescales_the_kept():
    dropped = insert_dropout(ones_model(), "same", 0.25, kind="spatial", seed=1)
    mask = np.array(dropped(np.ones((4, 8, 8, 400)), training=True))
    per_map = mask[:, 0, 0, :]
    np.testing.assert_array_equal(mask, np.broadcast_to(per_map[:, None, None], mask.shape))
    assert set(np.unique(per_map)) == {0, np.float32(1 / 0.75)}
    assert abs((per_map == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / per_map.size)
    assert (per_map[0] != per_map[1]).any()


def draw(kind, rate, shared, draws=2000, size=6, channels=8, **options):
    """What dropout makes of ones in `draws` draws: (draws, size, size, channels)."""
    inputs = keras.Input((size, size, channels))
    branch = layers.Activation("linear", name="same")(inputs)
    total = layers.Add()([layers.Rescaling(0.0)(inputs), branch])  # the shortcut that kind="path" asks for
    dropped = insert_dropout(
        keras.Model(inputs, total), "same", rate, kind=kind, shared_across_batch=shared, seed=1, **options
    )
    if not shared:
        return np.array(dropped(np.ones((draws, size, size, channels), "float32"), training=True))
    ones = tf.ones((2, size, size, channels))
    step = tf.function(lambda: dropped(ones, training=True))
    pairs = np.stack([step().numpy() for _ in range(draws)])
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    return pairs[:, 0]


@pytest.mark.parametrize("kind", ["element", "spatial", "block", "path"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_the_share_kept_is_one_minus_rate_and_the_mean_is_the_input(kind, shared, rate):
    masks = draw(kind, rate, shared)
    for values, wanted in (((masks != 0), 1 - rate), (masks, 1.0)):
        means = values.reshape(2000, -1).mean(axis=1)
        assert abs(means.mean() - wanted) < 3 * means.std(ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose(masks[masks != 0], 1 / (1 - rate), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "values_in_common"),
    [("element", 1), ("spatial", 36), ("path", 288)],
)
def test_what_a_kind_drops_is_dropped_as_one(kind, values_in_common):
    kept = draw(kind, 0.5, False) != 0
    units = kept.reshape(2000, 36, 8)
    units = {"element": units.reshape(2000, -1, 1), "spatial": units.transpose(0, 2, 1), "path": units}[kind]
    units = units.reshape(2000, -1, values_in_common)
    assert (units.all(axis=2) | ~units.any(axis=2)).all()
    assert 0.4 < units[..., 0].mean() < 0.6


def test_blocks_are_squares_cut_off_by_the_border_alone():
    dropped = draw("block", 0.2, False, draws=50, size=12, block_size=3)[..., 0] == 0
    square = np.ones((3, 3), bool)
    for one in dropped:
        beyond = np.pad(one, 2, constant_values=True)
        np.testing.assert_array_equal(ndimage.binary_opening(beyond, square)[2:-2, 2:-2], one)
    assert dropped.any() and not dropped.all()


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (5, 5), (3, 3)])
@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_blocks_keep_exactly_one_minus_rate_at_every_place(place, rate):
    kept = draw("block", rate, False, draws=4000, block_size=4)[:, place[0], place[1]] != 0
    assert abs(kept.mean() - (1 - rate)) < 3.5 * np.sqrt(rate * (1 - rate) / kept.size)


def test_neighbours_are_kept_together_as_often_as_the_seeds_that_reach_them_say():
    # b^2 + b seeds reach two neighbours, each absent with probability (1 - rate)^(1 / b^2).
    kept = draw("block", 0.4, False, draws=4000, block_size=3) != 0
    together = (kept[:, 2, 2] & kept[:, 2, 3]).mean()
    wanted = 0.6 ** (1 + 1 / 3)
    assert abs(together - wanted) < 3.5 * np.sqrt(wanted * (1 - wanted) / (4000 * 8))


def test_a_block_larger_than_a_dynamic_map_is_clipped_to_it():
    inputs = keras.Input((None, None, 8))
    model = keras.Model(inputs, layers.Activation("linear", name="same")(inputs))
    dropped = insert_dropout(model, "same", 0.3, kind="block", block_size=40, seed=0)
    step = tf.function(lambda x: dropped(x, training=True), input_signature=[tf.TensorSpec((None, None, None, 8))])
    masks = step(tf.ones((2000, 4, 6, 8))).numpy()
    kept = (masks != 0).reshape(2000, -1).mean(axis=1)
    assert abs(kept.mean() - 0.7) < 3 * kept.std() / np.sqrt(2000)
    # Blocks of 4 x 4, the shorter side: a block leaves columns of the map free.
    some_columns = (masks == 0).any(axis=1) & (masks == 0).all(axis=1)
    assert (some_columns.any(axis=1) & ~some_columns.all(axis=1)).any()


def test_a_block_larger_than_a_known_map_is_an_error(small):
    with pytest.raises(InputError, match=r"`block_size` must be at most the side .* block_size=17 .* map of 16 x 16"):
        insert_dropout(small, "act_a", 0.2, kind="block", block_size=17)


def test_a_bypassed_consumer_gets_the_undropped_tensor():
    inputs = keras.Input((8, 8, 50))
    site = layers.Activation("linear", name="site")(inputs)
    model = keras.Model(inputs, [layers.Activation("linear", name=n)(site) for n in ("dropped_side", "clean_side")])
    ones = np.ones((1, 8, 8, 50))
    first, second = insert_dropout(model, "site", 0.5, bypass=["clean_side"])(ones, training=True)
    assert (np.array(first) == 0).any()
    np.testing.assert_array_equal(second, ones)


def test_a_bypass_may_be_a_glob():
    inputs = keras.Input((8, 8, 50))
    site = layers.Activation("linear", name="site")(inputs)
    model = keras.Model(inputs, [layers.Activation("linear", name=n)(site) for n in ("concat_a", "concat_b")])
    ones = np.ones((1, 8, 8, 50))
    for output in insert_dropout(model, "site", 0.5, bypass="concat_*")(ones, training=True):
        np.testing.assert_array_equal(output, ones)


def test_an_input_is_no_site(small):
    with pytest.raises(InputError, match="Site 'picture' is an input; name the layers that come after it"):
        insert_dropout(small, "picture", 0.5)


def test_each_site_can_have_its_own_rate(small):
    dropped = insert_dropout(small, {"act_a": 0.1, "conv_b": 0.4})
    assert dropped.get_layer("act_a_dropout").rate == 0.1
    assert dropped.get_layer("conv_b_dropout").rate == 0.4


def test_a_glob_names_several_sites(small):
    names = [layer.name for layer in insert_dropout(small, "conv_*", 0.2).layers]
    assert [name for name in names if "dropout" in name] == ["conv_a_dropout", "conv_b_dropout"]


def test_equal_seeds_give_equal_masks_and_sites_draw_their_own():
    inputs = keras.Input((8, 8, 50))
    sites = [layers.Activation("linear", name=name)(inputs) for name in ("one", "two")]
    model, ones = keras.Model(inputs, sites), np.ones((1, 8, 8, 50))
    first = insert_dropout(model, ["one", "two"], 0.5, seed=3)(ones, training=True)
    again = insert_dropout(model, ["one", "two"], 0.5, seed=3)(ones, training=True)
    np.testing.assert_array_equal(first[0], again[0])
    assert (np.array(first[0]) != np.array(first[1])).any()


KINDS = [
    pytest.param(options, id="-".join(map(str, options.values())))
    for options in (
        {"kind": "element"},
        {"kind": "spatial"},
        {"kind": "block"},
        {"kind": "path"},
        {"kind": "element", "shared_across_batch": True},
        {"kind": "spatial", "shared_across_batch": True},
        {"kind": "block", "shared_across_batch": True},
        {"kind": "path", "shared_across_batch": True},
        {"kind": "spatial", "adjustable": True},
    )
]


def residual_model(channels=4):
    """input -> site -> sum, with a shortcut past the site."""
    inputs = keras.Input((8, 8, channels))
    branch = layers.Conv2D(channels, 3, padding="same", name="site")(inputs)
    return keras.Model(inputs, layers.Add(name="sum")([inputs, branch]))


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_compute_dtype_survives_insertion_and_a_safe_mode_round_trip(options, policy, tmp_path, float32_after):
    keras.config.set_dtype_policy(policy)
    model = residual_model()
    dropped = insert_dropout(model, "site", 0.5, **options)
    dropped.save(tmp_path / "m.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    wanted = model.get_layer("site").compute_dtype
    for copy in (dropped, loaded):
        assert [layer.compute_dtype for layer in copy.layers[1:]] == [wanted, wanted, wanted]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_every_kind_draws_with_its_rate_in_half_precision(options, policy, float32_after):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8, 8, 50))
    branch = layers.Activation("linear", name="site")(inputs)
    model = keras.Model(inputs, layers.Add()([layers.Rescaling(0.0)(inputs), branch]))
    dropped = insert_dropout(model, "site", 0.3, seed=0, **options)
    masks = np.stack([keras.ops.cast(dropped(np.ones((4, 8, 8, 50)), training=True), "float32") for _ in range(100)])
    shares = (masks != 0).reshape(100, -1).mean(axis=1)
    # Keras's own layers draw in the compute dtype: in bfloat16 their rates are multiples of 1 / 128, here 39 / 128.
    rounding = 1 / 128 if policy == "mixed_bfloat16" else 0
    assert abs(shares.mean() - 0.7) < 4 * shares.std() / 10 + rounding
    np.testing.assert_allclose(masks[masks != 0], 1 / 0.7, rtol=1e-2)


@pytest.mark.parametrize(("adjustable", "share"), [(False, 26 / 128), (True, 0.2)])
def test_adjustable_layers_have_exact_rates_in_bfloat16_where_keras_s_are_rounded(adjustable, share, float32_after):
    keras.config.set_dtype_policy("mixed_bfloat16")
    dropped = insert_dropout(ones_model(), "same", 0.2, seed=0, adjustable=adjustable)
    masks = np.array(keras.ops.cast(dropped(np.ones((40, 8, 8, 400)), training=True), "float32"))
    assert abs((masks == 0).mean() - share) < 4 * np.sqrt(0.16 / masks.size)


@pytest.mark.parametrize("options", KINDS)
def test_every_kind_survives_every_way_of_saving(options, tmp_path):
    model = residual_model()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    dropped = insert_dropout(model, "site", 0.5, **options)
    wanted = np.array(model(x))
    dropped.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(x), wanted)
    assert (np.array(loaded(x, training=True)) != wanted).any()
    dropped.save_weights(tmp_path / "m.weights.h5")
    other = residual_model()
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other(x), wanted)
    dropped.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(exported.serve(x), wanted, atol=1e-6)


@pytest.mark.parametrize("options", [{"kind": "element"}, {"kind": "spatial"}, {"kind": "path"}])
@pytest.mark.parametrize("shared", [False, True])
def test_keras_s_own_layers_are_used_where_there_are_any(options, shared):
    dropped = insert_dropout(residual_model(), "site", 0.5, shared_across_batch=shared, **options)
    assert type(dropped.get_layer("site_dropout")).__module__.startswith("keras.")


def test_trainable_flags_are_kept():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(3, name="frozen")(inputs)))
    model.get_layer("frozen").trainable = False
    dropped = insert_dropout(model, "frozen", 0.5)
    assert [layer.trainable for layer in dropped.layers if layer.weights] == [False, True]


def test_a_sequential_model_works():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="hidden"), layers.Dense(1)])
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(insert_dropout(model, "hidden", 0.5)(x), model(x))


def test_a_subclassed_model_is_a_type_error():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="must be a functional or built Sequential Keras 3 model"):
        insert_dropout(Own(), "x", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["conv_x"], 0.5), r"`sites` matches no layer of this model: 'conv_x'. Nearest: conv_"),
        ((["act_a", "act_a"], 0.5), "names a layer twice: 'act_a'"),
        ((["act_a", "act_*"], 0.5), "names a layer twice: 'act_a'"),
        (([], 0.5), "`sites` is empty"),
        (("act_a", 1.0), r"`rate` must be a number in \[0, 1\), got rate=1.0"),
        (("act_a", -0.1), r"`rate` must be a number in \[0, 1\)"),
        (("act_a", float("nan")), r"`rate` must be a number in \[0, 1\), got rate=nan"),
        (("act_a", "0.5"), r"`rate` must be a number in \[0, 1\), got rate='0.5'"),
        (("act_a", None), r"`rate` must be a number in \[0, 1\), got rate=None"),
        (({"act_a": 0.5}, 0.5), "`rate` must be left out"),
    ],
)
def test_a_wrong_selection_or_rate_is_an_error(small, arguments, message):
    with pytest.raises(InputError, match=message):
        insert_dropout(small, *arguments)


def test_an_unknown_kind_is_an_error(small):
    with pytest.raises(InputError, match="`kind` must be one of element, spatial, block, path, got kind='gauss'"):
        insert_dropout(small, "act_a", 0.5, kind="gauss")


def test_an_unknown_bypass_is_an_error(small):
    with pytest.raises(InputError, match="`bypass` matches no layer of this model: 'nobody'"):
        insert_dropout(small, "act_a", 0.5, bypass=["nobody"])


def test_inserting_twice_at_one_site_is_an_error(small):
    with pytest.raises(InputError, match="'act_a' is already followed by dropout"):
        insert_dropout(insert_dropout(small, "act_a", 0.5), "act_a", 0.5)


def test_spatial_kind_needs_a_4d_site():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, name="flat")(inputs))
    with pytest.raises(
        InputError, match=r"needs 4-D outputs \(N, H, W, C\), or 3-D or 5-D; site 'flat' gives \(None, 3\)"
    ):
        insert_dropout(model, "flat", 0.5, kind="spatial")


def test_a_site_of_several_tensors_is_an_error():
    inputs = keras.Input((4, 3))
    output, *_ = layers.LSTM(2, return_state=True, name="states")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(output))
    with pytest.raises(InputError, match="output of site 'states' is not one float tensor"):
        insert_dropout(model, "states", 0.5)


def test_a_site_of_whole_numbers_is_an_error():
    inputs = keras.Input((4,))
    counts = layers.Discretization(bin_boundaries=[0.0, 1.0], name="counts")(inputs)
    model = keras.Model(inputs, layers.Embedding(5, 2)(counts))
    with pytest.raises(InputError, match="output of site 'counts' is not one float tensor"):
        insert_dropout(model, "counts", 0.5)


def test_a_ramp_runs_over_the_sites_in_the_model_s_order(small):
    dropped = insert_dropout(small, ["out", "act_a", "bn_b"], (0.1, 0.5))
    assert {name: dropped.get_layer(f"{name}_dropout").rate for name in ("act_a", "bn_b", "out")} == {
        "act_a": 0.1,
        "bn_b": 0.3,
        "out": 0.5,
    }


def test_path_needs_a_residual_branch(small):
    with pytest.raises(InputError, match="needs the end of a residual branch; the output of site 'conv_a'"):
        insert_dropout(small, "conv_a", 0.5, kind="path")


@pytest.mark.filterwarnings("ignore:Keras orders the layers of the new model differently")
def test_path_takes_a_branch_whose_shortcut_is_a_projection():
    inputs = keras.Input((8, 8, 3))
    branch = layers.Conv2D(4, 3, padding="same")(layers.BatchNormalization()(layers.Conv2D(4, 1)(inputs)))
    branch = layers.BatchNormalization(name="branch")(branch)
    shortcut = layers.BatchNormalization(name="shortcut")(layers.Conv2D(4, 1)(inputs))
    model = keras.Model(inputs, shortcut + branch)
    with pytest.raises(InputError, match="needs the end of a residual branch; the output of site 'shortcut'"):
        insert_dropout(model, "shortcut", 0.5, kind="path")
    assert kind_of(insert_dropout(model, "branch", 0.5, kind="path").get_layer("branch_dropout")) == ("path", False)


def test_spatial_kind_suits_sequences_and_volumes():
    inputs = keras.Input((10, 5))
    model = keras.Model(inputs, layers.Conv1D(6, 3, name="steps")(inputs))
    mask = np.array(insert_dropout(model, "steps", 0.5, kind="spatial", seed=0)(np.ones((8, 10, 5)), training=True))
    assert (mask == 0).all(axis=1).sum() == (mask == 0)[:, 0].sum() > 0


def test_the_source_s_flags_of_trainable_survive_where_only_a_part_is_frozen(small):
    source = insert_dropout(small, "act_a", 0.5)
    source.get_layer("bn_b").trainable = False
    copy = insert_dropout(source, "conv_b", 0.5)
    assert [w.path for w in copy.trainable_weights] == [w.path for w in source.trainable_weights]


def test_a_wholly_frozen_model_stays_frozen_and_can_be_freed(small):
    source = insert_dropout(small, "act_a", 0.5)
    source.trainable = False
    copy = insert_dropout(source, "conv_b", 0.5)
    assert copy.trainable_weights == []
    copy.trainable = True
    assert len(copy.trainable_weights) == len(small.trainable_weights)


def test_removing_gives_the_plain_model_back(small):
    dropped = insert_dropout(small, ["act_a", "conv_b"], 0.5, kind="spatial", bypass="total")
    plain = remove_dropout(dropped)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in small.layers]
    assert [layer.get_config() for layer in plain.layers[1:]] == [layer.get_config() for layer in small.layers[1:]]
    np.testing.assert_array_equal(plain(IMAGE), small(IMAGE))
    np.testing.assert_array_equal(plain(IMAGE, training=True), small(IMAGE, training=True))


def test_removing_leaves_foreign_dropout_unless_all_is_asked_for():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.3, name="theirs")(layers.Dense(3, name="hidden")(inputs))
    model = insert_dropout(keras.Model(inputs, layers.Dense(1, name="last")(x)), "last", 0.5)
    names = [layer.name for layer in remove_dropout(model).layers]
    assert "theirs" in names and "last_dropout" not in names
    assert "theirs" not in [layer.name for layer in remove_dropout(model, all=True).layers]


def test_a_monte_carlo_twin_is_random_in_predict_and_its_mean_is_that_of_training_draws():
    inputs = keras.Input((4, 4, 100))
    model = keras.Model(inputs, layers.Activation("linear", name="same")(inputs))
    twin = monte_carlo(insert_dropout(model, "same", 0.25), seed=0)
    masks = twin.predict(np.ones((100, 4, 4, 100), "float32"), verbose=0)
    assert set(np.unique(masks)) == {0, np.float32(1 / 0.75)}
    assert abs((masks == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / masks.size)


@pytest.mark.parametrize("options", KINDS)
def test_a_monte_carlo_twin_of_a_loaded_model_is_random_for_every_kind(options, tmp_path):
    insert_dropout(residual_model(64), "site", 0.5, **options).save(tmp_path / "m.keras")
    twin = monte_carlo(keras.saving.load_model(tmp_path / "m.keras"))
    x = np.ones((8, 8, 8, 64), "float32")
    samples = [twin.predict(x, verbose=0) for _ in range(8)]
    assert any((sample != samples[0]).any() for sample in samples[1:])


def test_a_monte_carlo_twin_shares_weights_and_moves_no_batchnorm(small):
    dropped = insert_dropout(small, "act_a", 0.5)
    twin = monte_carlo(dropped)
    assert {id(w) for w in twin.weights} == {id(w) for w in dropped.weights}
    before = dropped.get_layer("bn_b").get_weights()
    for training in (False, True):
        twin(IMAGE, training=training)
    twin.predict(IMAGE, verbose=0)
    for old, now in zip(before, dropped.get_layer("bn_b").get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    dropped(IMAGE, training=True)
    assert (before[2] != dropped.get_layer("bn_b").get_weights()[2]).any()


def test_a_monte_carlo_twin_uses_batchnorm_s_moving_statistics(small):
    dropped = insert_dropout(small, "act_a", {"act_a": 0.5}["act_a"])
    twin = monte_carlo(dropped, rate=0.0)
    np.testing.assert_allclose(twin.predict(IMAGE, verbose=0), dropped.predict(IMAGE, verbose=0), atol=1e-6)


def test_a_seeded_monte_carlo_twin_repeats(small):
    dropped = insert_dropout(small, ["act_a", "conv_b"], 0.5)
    first, second = (monte_carlo(dropped, seed=3).predict(IMAGE, verbose=0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (monte_carlo(dropped, seed=4).predict(IMAGE, verbose=0) != first).any()


def test_a_seed_that_is_no_number_is_refused(small):
    dropped = insert_dropout(small, "act_a", 0.5)
    for make in (lambda: insert_dropout(small, "act_a", 0.5, seed="a"), lambda: monte_carlo(dropped, seed="a")):
        with pytest.raises(InputError, match="`seed` must be a whole number or None, got seed='a'"):
            make()


def test_a_monte_carlo_twin_can_be_saved(small, tmp_path):
    twin = monte_carlo(insert_dropout(small, "act_a", 0.5), seed=3)
    wanted = monte_carlo(insert_dropout(small, "act_a", 0.5), seed=3).predict(IMAGE, verbose=0)
    twin.save(tmp_path / "twin.keras")
    loaded = keras.saving.load_model(tmp_path / "twin.keras")
    np.testing.assert_allclose(loaded.predict(IMAGE, verbose=0), wanted, atol=1e-6)


def test_the_model_can_still_be_looked_into_after_a_twin_was_made(small):
    dropped = insert_dropout(small, "act_a", 0.5)
    monte_carlo(dropped)
    probe = keras.Model(dropped.input, dropped.get_layer("act_a").output)
    assert probe(IMAGE).shape == (2, 16, 16, 8)


@pytest.mark.parametrize("rate", [0.0, None])
def test_a_twin_without_randomness_is_an_error(small, rate):
    model = small if rate is None else insert_dropout(small, "act_a", rate)
    with pytest.raises(InputError, match="no dropout layer|has rate 0 now"):
        monte_carlo(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 3}, "`block_size` belongs to kind='block', got kind='element'"),
        ({"kind": "block", "block_size": 0}, "`block_size` must be a whole number of at least 1, got block_size=0"),
        ({"kind": "block", "block_size": 2.5}, "`block_size` must be a whole number"),
        ({"rate": (0.1, 0.2, 0.3)}, "must be one number or two"),
        ({"rate": (0.1, 1.0)}, r"must be a number in \[0, 1\), got rate=1.0"),
    ],
)
def test_wrong_options_are_errors_and_leave_the_model_alone(small, options, message):
    before = [w.copy() for w in small.get_weights()]
    with pytest.raises(InputError, match=message):
        insert_dropout(small, "act_a", **{"rate": 0.5, **options})
    assert "act_a_dropout" not in [layer.name for layer in small.layers]
    for old, now in zip(before, small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


def test_a_legacy_model_is_a_type_error_that_says_so():
    legacy = type("Functional", (), {"__module__": "tf_keras.src.engine.functional"})()
    with pytest.raises(TypeError, match="got tf_keras.src.engine.functional.Functional, of legacy Keras 2"):
        insert_dropout(legacy, "x", 0.5)


def test_path_at_a_model_s_own_output_is_an_error():
    inputs = keras.Input((4,))
    branch = layers.Dense(4, name="branch")(inputs)
    model = keras.Model(inputs, [layers.Add()([inputs, branch]), branch])
    with pytest.raises(InputError, match="needs the end of a residual branch"):
        insert_dropout(model, "branch", 0.5, kind="path")


def test_a_bypass_without_effect_is_an_error(small):
    with pytest.raises(InputError, match="`bypass` 'out' has no effect: none of its layers receives a site's output"):
        insert_dropout(small, "act_a", 0.5, bypass=["total", "out"])


def test_what_was_inserted_behind_inserted_dropout_is_removed_too(small):
    twice = insert_dropout(insert_dropout(small, "act_a", 0.5), "act_a_dropout", 0.5, kind="spatial")
    assert [layer.name for layer in remove_dropout(twice).layers] == [layer.name for layer in small.layers]


def test_dropout_called_with_a_keyword_is_removed():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.3, name="hidden_dropout")(inputs=layers.Dense(3, name="hidden")(inputs))
    names = [layer.name for layer in remove_dropout(keras.Model(inputs, layers.Dense(1, name="last")(x))).layers]
    assert names[1:] == ["hidden", "last"]


def test_a_twin_of_a_twin_is_random_too():
    inputs = keras.Input((50,))
    model = insert_dropout(keras.Model(inputs, layers.Dense(50, name="hidden")(inputs)), "hidden", 0.5)
    twin = monte_carlo(monte_carlo(model))
    ones = np.ones((2, 50), "float32")
    assert (twin.predict(ones, verbose=0) != twin.predict(ones, verbose=0)).any()


def test_the_axis_of_the_channels_is_the_site_s_own():
    inputs = keras.Input((20, 8, 8))
    model = keras.Model(
        inputs, layers.GlobalAveragePooling2D(data_format="channels_first", keepdims=True, name="site")(inputs)
    )
    wide = keras.Model(inputs, layers.UpSampling2D(2, data_format="channels_first", name="site")(inputs))
    for kind in ("spatial", "block"):
        mask = np.array(insert_dropout(wide, "site", 0.5, kind=kind, seed=0)(np.ones((4, 20, 8, 8)), training=True))
        assert mask.shape == (4, 20, 16, 16)
    mask = np.array(insert_dropout(wide, "site", 0.5, kind="spatial", seed=0)(np.ones((4, 20, 8, 8)), training=True))
    whole = mask.reshape(4, 20, -1)
    assert (whole.all(axis=2) | ~whole.any(axis=2)).all() and 0 < (whole == 0).mean() < 1
    assert kind_of(insert_dropout(model, "site", 0.5, kind="spatial").get_layer("site_dropout"))[0] == "spatial"


@pytest.mark.parametrize("rate", [np.float32(0.25), np.float64(0.25)])
def test_numpy_s_numbers_are_rates(small, rate):
    assert insert_dropout(small, "act_a", rate).get_layer("act_a_dropout").rate == 0.25
