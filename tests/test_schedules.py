"""Rates that change during training: they act on the next step of a model that is already traced."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from segdrop import DropoutSchedule, InputError, build_unet, insert_dropout, monte_carlo, set_dropout_rate

pytestmark = pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")


def mean_square(truth, pred):
    return ops.mean(ops.square(pred))


def ones_model(rate=0.5, **options):
    """A compiled model whose loss on ones is the mean square of what dropout makes of them: 1 / (1 - rate)."""
    keras.utils.set_random_seed(0)  # so few channels miss the tolerance once in a hundred draws
    inputs = keras.Input((20, 20, 50))
    model = keras.Model(inputs, layers.Activation("linear", name="same")(inputs))
    model = insert_dropout(model, "same", rate, **{"adjustable": True, **options})
    model.compile("sgd", mean_square)
    return model


ONES = np.ones((8, 20, 20, 50), "float32")


class Rates(keras.callbacks.Callback):
    """The rate that acted in each step, from its loss."""

    def __init__(self, change_at=None, to=None):
        super().__init__()
        self.seen, self.sum = [], 0.0
        self.change_at, self.to = change_at, to

    def on_epoch_begin(self, epoch, logs=None):
        self.sum = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.change_at:
            set_dropout_rate(self.model, self.to)

    def on_train_batch_end(self, batch, logs=None):
        loss = logs["loss"] * (batch + 1) - self.sum  # Keras logs the mean over the epoch so far
        self.sum += loss
        self.seen.append(1 - 1 / loss)


@pytest.mark.jax
@pytest.mark.parametrize("kind", ["element", "spatial", "block"])
def test_a_schedule_acts_in_every_epoch_of_a_traced_fit(kind):
    model, rates = ones_model(0.4, kind=kind), Rates()
    model.fit(ONES, ONES, epochs=5, verbose=0, callbacks=[DropoutSchedule("ramp", 4), rates])
    np.testing.assert_allclose(rates.seen, [0, 0.1, 0.2, 0.3, 0.4], atol=0.06)


@pytest.mark.jax
def test_a_rate_set_in_the_middle_of_an_epoch_acts_on_the_next_step():
    model, rates = ones_model(0.5), Rates(change_at=2, to=0.1)
    model.fit(ONES, ONES, batch_size=2, verbose=0, callbacks=[rates])
    np.testing.assert_allclose(rates.seen, [0.5, 0.5, 0.1, 0.1], atol=0.02)


@pytest.mark.jax
def test_assigning_the_layer_s_rate_acts_without_compiling_again():
    model = ones_model(0.5)
    first = model.train_on_batch(ONES, ONES)
    model.reset_metrics()  # or older versions give the mean of both steps
    model.get_layer("same_dropout").rate = 0.2
    assert 1 - 1 / first == pytest.approx(0.5, abs=0.01)
    assert 1 - 1 / model.train_on_batch(ONES, ONES) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ("ramp", [0, 0.25, 0.5, 0.75, 1, 1]),
        ("anneal", [1, 0.75, 0.5, 0.25, 0, 0]),
        ("warmup", [0, 0, 0, 0, 1, 1]),
    ],
)
def test_the_named_shapes(shape, factors):
    schedule = DropoutSchedule(shape, 4)
    assert [schedule.factor(epoch) for epoch in range(6)] == factors


def test_a_schedule_keeps_the_ratio_of_different_rates_and_logs_their_mean():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="one")(inputs)
    model = insert_dropout(
        keras.Model(inputs, layers.Dense(3, name="two")(x)), {"one": 0.2, "two": 0.4}, adjustable=True
    )
    model.compile("sgd", "mse")
    history = model.fit(
        np.ones((2, 4)), np.ones((2, 3)), epochs=2, verbose=0, callbacks=[DropoutSchedule(lambda epoch: 0.5 * epoch)]
    ).history
    assert [model.get_layer(f"{name}_dropout").rate for name in ("one", "two")] == [0.1, 0.2]
    assert history["dropout_rate"] == pytest.approx([0, 0.15])


def test_the_rate_is_in_variables_and_never_in_weights():
    model = ones_model(0.3)
    assert [v.path for v in model.variables if v.path.endswith("rate")] == ["same_dropout/rate"]
    assert model.weights == []


def test_the_saved_model_holds_the_current_rate_and_the_target(tmp_path):
    model = ones_model(0.4)
    set_dropout_rate(model, 0.1)
    model.save(tmp_path / "m.keras")
    layer = keras.saving.load_model(tmp_path / "m.keras", compile=False).get_layer("same_dropout")
    assert (layer.rate, layer.target) == (0.1, 0.4)


def test_weight_files_of_a_scheduled_unet_load_into_the_plain_one_and_back(plain, tmp_path):
    scheduled = build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, kind="block", adjustable=True)
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    plain.save_weights(tmp_path / "plain.weights.h5")
    scheduled.load_weights(tmp_path / "plain.weights.h5")
    wanted = plain(image)
    np.testing.assert_array_equal(scheduled(image), wanted)
    scheduled.save_weights(tmp_path / "scheduled.weights.h5")
    other = build_unet("resnet18", encoder_weights=None)
    other.load_weights(tmp_path / "scheduled.weights.h5")
    np.testing.assert_array_equal(other(image), wanted)


def test_a_twin_of_a_model_whose_schedule_ended_at_zero_takes_a_rate():
    model = ones_model(0.4)
    set_dropout_rate(model, 0.0)
    with pytest.raises(InputError, match="has rate 0 now, as a schedule leaves it; give `rate`"):
        monte_carlo(model)
    masks = monte_carlo(model, rate=0.4).predict(ONES, verbose=0)
    assert (masks == 0).mean() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sine", 3), "`shape` must be one of ramp, anneal, warmup or a function, got shape='sine'"),
        (("ramp", 0), "`epochs` must be a whole number of at least 1, got epochs=0"),
        (("ramp",), "`epochs` must be a whole number of at least 1, got epochs=None"),
        ((lambda epoch: 1, 3), "`epochs` belongs to a named shape"),
    ],
)
def test_a_wrong_schedule_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        DropoutSchedule(*arguments)


def test_a_model_without_adjustable_layers_is_an_error(plain):
    with pytest.raises(InputError, match="no dropout layer whose rate can change; build it with adjustable=True"):
        set_dropout_rate(plain, 0.1)


def test_a_rate_outside_its_range_is_an_error_and_changes_nothing():
    model = ones_model(0.3)
    with pytest.raises(InputError, match=r"`rate` must be a number in \[0, 1\), got rate=1"):
        set_dropout_rate(model, 1)
    assert model.get_layer("same_dropout").rate == 0.3
