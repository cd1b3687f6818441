"""insert_dropout: what it changes, and everything that it must not change."""

import keras
import numpy as np
import pytest
from keras import layers

from segdrop import InputError, insert_dropout

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


@pytest.mark.parametrize("kind", ["element", "spatial"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_compute_dtype_survives_insertion_and_a_safe_mode_round_trip(kind, policy, tmp_path, float32_after):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="site")(inputs))
    dropped = insert_dropout(model, "site", 0.5, kind=kind)
    dropped.save(tmp_path / "m.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    wanted = model.get_layer("site").compute_dtype
    for copy in (dropped, loaded):
        assert [layer.compute_dtype for layer in copy.layers[1:]] == [wanted, wanted]


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
    with pytest.raises(InputError, match="`kind` must be one of element, spatial, got kind='gauss'"):
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
    with pytest.raises(InputError, match=r"needs 4-D outputs \(N, H, W, C\); site 'flat' gives \(None, 3\)"):
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
