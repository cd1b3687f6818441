"""Training on several devices: the same as on one, but for the masks of dropout.

The number of devices must be set before TensorFlow starts, so this file, run as a program, measures on two CPU devices
and writes what it found; the tests read that.
"""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomise, write_pairs
from standin import build_small_unet
from test_optimizer import step_taken

from segdrop import InputError, TrainConfig, train
from segdrop.cells import draw_cells
from segdrop.conventions import IGNORED
from segdrop.data.augment import Sampler, load_augmentation
from segdrop.data.batches import evaluation_batches, steps_per_epoch, training_batches
from segdrop.data.opening import open_dataset
from segdrop.folders.state import restore_state, save_state
from segdrop.nets import unet
from segdrop.scoring.counts import confusion_counts, dice_from_counts
from segdrop.surgery.dropout import insert_dropout
from segdrop.surgery.rebuild import rebuild
from segdrop.surgery.schedules import DropoutSchedule
from segdrop.training.losses import SegmentationLoss
from segdrop.training.metrics import Dice, IoU
from segdrop.training.optimizer import WarmupCosine
from segdrop.training.replicas import AgreedLossScale, UpdateOriginal, copy_state, replicate, strategy_for

DEVICES = ("CPU:0", "CPU:1")
KINDS = {  # options of insert_dropout, and the class of the layer
    "element": ({"kind": "element"}, "Dropout"),
    "spatial": ({"kind": "spatial"}, "SpatialDropout2D"),
    "path": ({"kind": "path"}, "Dropout"),
    "adjustable": ({"kind": "element", "adjustable": True}, "AdjustableDropout"),
    "block": ({"kind": "block"}, "DropBlock2D"),
}
pytestmark = pytest.mark.slow
BATCH, EPOCHS, TRAINING_IMAGES = 4, 3, 8


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    known = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # as in pyproject.toml
    program = [sys.executable, "-W", "error", "-W", known, __file__, str(folder)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "measured.json").read_text())


def test_a_batch_that_cannot_be_divided_is_an_error():
    with pytest.raises(InputError, match=r"^`batch_size` must be a multiple of the 2 devices, got batch_size=5\.$"):
        strategy_for("all", 5, DEVICES)


@pytest.mark.parametrize("gpus, devices", [("all", ()), ("all", ("GPU:0",)), ("one", DEVICES)])
def test_one_device_takes_no_strategy(gpus, devices):
    assert strategy_for(gpus, 5, devices) is None


def test_two_devices_follow_the_loss_of_one(measured):
    one, two = measured["agreement"]["one"], measured["agreement"]["two"]
    assert len(one["steps"]) == EPOCHS * TRAINING_IMAGES // BATCH
    # Keras keeps the mean of the loss in float32.
    np.testing.assert_allclose(two["steps"], one["steps"], rtol=0, atol=5e-7)
    np.testing.assert_allclose(two["history"]["loss"], one["history"]["loss"], rtol=0, atol=5e-7)
    assert max(one["steps"]) - min(one["steps"]) > 0.01  # a network that does not train would follow, too


def test_confusion_counts_are_summed_over_the_devices(measured):
    one, two = (measured["agreement"][name]["history"] for name in ("one", "two"))
    assert (two["dice"], two["iou"]) == (one["dice"], one["iou"])
    assert all(0 < score < 1 for score in one["dice"])


def test_two_devices_arrive_at_the_weights_of_one(measured):
    assert measured["agreement"]["largest_difference"] < 1e-9
    assert measured["agreement"]["largest_step"] > 1e-3


def test_unsynchronised_batchnorm_changes_the_loss(measured):
    assert measured["batchnorm"]["synchronised"] < 1e-5
    assert measured["batchnorm"]["as keras has it"] > 1e-3


def test_a_batch_is_divided_without_loss(measured):
    assert measured["division"] == {"shapes": [[2, 32, 32, 3]] * 2, "equal": True, "batches": EPOCHS * 2}


def test_keras_draws_the_same_masks_on_both_devices(measured):
    """The reason for `replicate` to do something about it."""
    assert measured["masks"]["keras"]["between_devices"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_devices_draw_masks_of_their_own(measured, kind):
    masks = measured["masks"][kind]
    assert masks["class"] == KINDS[kind][1]
    # 0.5 is the share of equal values in independent masks of rate 0.5; the bounds are 6 standard deviations.
    for pair in ("between_devices", "between_steps", "after_retracing"):
        assert abs(masks[pair] - 0.5) < 3 / masks["groups"] ** 0.5
    for kept in masks["kept"]:
        assert abs(kept - 0.5) < 3 / masks["groups"] ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_every_device_the_same_masks(measured, kind):
    assert measured["masks"][kind]["of_a_second_replication"] == 1
    assert measured["masks"][kind]["at_inference"] == 1


def test_the_original_stays_an_ordinary_model(measured):
    original = measured["original"]
    assert original["config_unchanged"]
    assert original["copy_starts_from_its_state"]
    assert original["masks_unchanged"]
    assert original["loaded_output_difference"] == 0
    assert original["has_the_weights_of_the_copy"]


def test_a_schedule_reaches_every_device(measured):
    rates = measured["schedule"]
    assert rates["logged"] == [0.0, 0.4]
    assert [rates["kept"]["0.0"], rates["original"]] == [[1.0, 1.0], 0.4]
    np.testing.assert_allclose(rates["kept"]["0.4"], 0.6, atol=0.03)


def test_bfloat16_trains(measured):
    run = measured["schedule"]
    assert run["policy"] == "mixed_bfloat16"
    assert np.isfinite(run["losses"]).all()
    assert len(set(run["losses"])) == 4


def test_validation_counts_every_image_once(measured):
    scores = measured["validation"]
    assert scores["plan"] == [3, 1]  # images; there are two devices
    assert scores["seen"] == scores["images"]
    assert scores["original_follows"]
    np.testing.assert_allclose(scores["val_dice"], scores["by_hand"], rtol=1e-6)
    np.testing.assert_allclose(scores["val_loss"], scores["mean_of_images"], rtol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(measured, policy):
    losses = measured["resume"][policy]
    assert len(losses["uninterrupted"]) == 2
    np.testing.assert_allclose(losses["resumed"], losses["uninterrupted"], rtol=1e-3 if "16" in policy else 1e-5)


@pytest.mark.parametrize("device", [0, 1])
def test_an_overflow_on_one_device_skips_the_step(measured, device):
    step = measured["overflow"][device]
    assert step == {"largest_step": 0, "loss_scale": 2.0**14, "iterations": 0}


def test_loss_scaling_takes_a_finite_step(measured):
    step = measured["overflow"][2]
    assert 0 < step["largest_step"] < 0.1
    assert (step["loss_scale"], step["iterations"]) == (2.0**15, 1)


def test_the_encoder_s_factor_holds_on_every_device(measured):
    whole, scaled = measured["encoder_lr"]["1.0"], measured["encoder_lr"]["0.25"]
    np.testing.assert_allclose(scaled["encoder"], np.array(whole["encoder"]) / 4, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scaled["decoder"], whole["decoder"], rtol=1e-3, atol=1e-6)


def test_a_whole_training_divides_its_batches(measured):
    one, two = measured["training"]["one"], measured["training"]["all"]
    assert two["device"] == f"2 x {one['device']}"
    # float32: the first epoch's two steps differ by rounding, which the optimizer then enlarges.
    np.testing.assert_allclose(two["loss"][0], one["loss"][0], atol=1e-4)
    assert len(two["val_dice"]) == 2 and np.isfinite(two["val_dice"]).all()
    assert not two["synchronised"]  # the stored network is an ordinary one


# What follows runs on two devices, in a process of its own.


def open_cells(folder):
    pairs = {f"cell_{i}": draw_cells(np.random.default_rng(i), 64 if i < 9 else 96) for i in range(TRAINING_IMAGES + 4)}
    pairs["cell_9"] = tuple(part[:64] for part in pairs["cell_9"])
    return open_dataset(write_pairs(folder / "cells", pairs))


def batches_of(dataset, first=0, last=EPOCHS):
    return training_batches(
        dataset,
        range(TRAINING_IMAGES),
        Sampler(load_augmentation("light"), 32),
        batch_size=BATCH,
        crop_size=32,
        seed=0,
        first_epoch=first,
        epochs=last,
    )


def small_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv1")(x)
    x = keras.layers.Activation("relu", name="relu1")(keras.layers.BatchNormalization(name="bn1", momentum=0.9)(x))
    y = keras.layers.Conv2D(8, 3, padding="same", name="conv2")(x)
    x = keras.layers.Add(name="sum")([x, keras.layers.Activation("relu", name="relu2")(y)])
    outputs = keras.layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="head")(x)
    return keras.Model(inputs, outputs)


class Steps(keras.callbacks.Callback):
    """The running mean of the loss after every step."""

    def on_train_begin(self, logs=None):
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def fit(model, strategy, dataset, first=0, last=EPOCHS, callbacks=(), before=None, peak=1e-2):
    steps, per_epoch = Steps(), steps_per_epoch(TRAINING_IMAGES, BATCH)
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = keras.optimizers.AdamW(WarmupCosine(peak, EPOCHS * per_epoch), weight_decay=1e-4)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        if model.dtype_policy.compute_dtype == "float16":
            optimizer = AgreedLossScale(optimizer)
        model.compile(optimizer, SegmentationLoss("dice_ce"), metrics=scores(), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    if before:
        before(model)
    history = model.fit(
        batches_of(dataset, first, last),
        epochs=last,
        initial_epoch=first,
        steps_per_epoch=per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, steps],
    )
    return {"history": history.history, "steps": steps.losses}


def scores():
    return [Dice(2, name="dice"), IoU(2, name="iou")]


def values(model):
    return [np.asarray(variable) for variable in model.variables]


def largest(a, b):
    return float(max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)))


def measure_agreement(strategy, dataset):
    """In float64: in float32 AdamW makes rounding grow, on one device as between one and two."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    unet._with_float32_head = lambda model: model
    keras.utils.set_random_seed(0)
    model = unet.build_unet("resnet18", encoder_weights=None, decoder_filters=(16,) * 5)
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    before, copy = values(model), replicate(model, strategy)
    two, one = fit(copy, strategy, dataset, peak=1e-3), fit(model, None, dataset, peak=1e-3)
    return {
        "one": one,
        "two": two,
        "largest_difference": largest(values(model), values(copy)),
        "largest_step": largest(values(model), before),
    }


def measure_batchnorm(strategy, dataset):
    model = small_model()
    unsynchronised = replicate(model, strategy)
    unsynchronised.get_layer("bn1").synchronized = False
    two, other = fit(replicate(model, strategy), strategy, dataset), fit(unsynchronised, strategy, dataset)
    one = fit(model, None, dataset)
    return {
        name: float(np.abs(np.subtract(run["steps"], one["steps"])).max())
        for name, run in (("synchronised", two), ("as keras has it", other))
    }


def measure_division(strategy, dataset):
    pairs = list(zip(strategy.experimental_distribute_dataset(batches_of(dataset)), batches_of(dataset), strict=True))
    halves = [strategy.experimental_local_results(images) for (images, _), _ in pairs]
    masks = [strategy.experimental_local_results(masks) for (_, masks), _ in pairs]
    equal = [np.array_equal(np.concatenate(ours), whole) for ours, (_, (whole, _)) in zip(halves, pairs, strict=True)]
    equal += [np.array_equal(np.concatenate(ours), whole) for ours, (_, (_, whole)) in zip(masks, pairs, strict=True)]
    return {"shapes": [list(half.shape) for half in halves[0]], "equal": all(equal), "batches": len(pairs)}


def draw(layer, strategy, shapes, training=True):
    """For each shape the masks of the devices, one traced function calling the layer on them all."""
    step = tf.function(lambda ones: strategy.run(lambda: layer(ones, training=training)))
    return [
        [np.asarray(result) > 0 for result in strategy.experimental_local_results(step(tf.ones(shape)))]
        for shape in shapes
    ]


def measure_masks(strategy):
    found = {}
    for kind, (options, _) in KINDS.items():
        model = insert_dropout(small_model(), "relu2", 0.5, seed=7, **options)
        layer = replicate(model, strategy).get_layer("relu2_dropout")
        second = replicate(model, strategy).get_layer("relu2_dropout")
        shape, other = [(size, 1, 1, 2) if kind == "path" else (size // 250, 12, 12, 32) for size in (4000, 5000)]
        first, next_one, retraced = draw(layer, strategy, [shape, shape, other])
        again = draw(second, strategy, [shape, shape, other])
        groups = {"spatial": 16 * 32, "path": 4000, "block": 16 * 32 * 4}.get(kind, first[0].size)
        found[kind] = {
            "class": type(layer).__name__,
            "groups": groups,
            "kept": [float(mask.mean()) for mask in first],
            "between_devices": same(first[0], first[1]),
            "between_steps": same(first[0], next_one[0]),
            "after_retracing": same(retraced[0], retraced[1]),
            "of_a_second_replication": min(
                same(a, b)
                for one, two in zip([first, next_one, retraced], again, strict=True)
                for a, b in zip(one, two, strict=True)
            ),
            "at_inference": min(float(kept.mean()) for kept in draw(layer, strategy, [shape], training=False)[0]),
        }
    with strategy.scope():
        plain = keras.layers.Dropout(0.5, seed=7)
    found["keras"] = {"between_devices": same(*draw(plain, strategy, [(16, 12, 12, 32)])[0])}
    return found


def same(a, b):
    return float((a == b).mean())


def measure_original(strategy, folder):
    def masks(model):
        twin = rebuild(model)
        copy_state(model, twin)
        return np.asarray(twin.get_layer("relu2_dropout")(np.ones((4, 8, 8, 8)), training=True))

    model = insert_dropout(small_model(), "relu2", 0.5, kind="spatial", seed=7)
    model.get_layer("relu2_dropout")(np.ones((1, 4, 4, 8)), training=True)  # its state is not the initial one then
    config, drawn = json.dumps(model.get_config()), masks(model)
    copy = replicate(model, strategy)
    starts_equal = largest(values(model), values(copy)) == 0
    drawn_afterwards = masks(model)
    randomise(copy)
    copy_state(copy, model)
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    return {
        "config_unchanged": json.dumps(loaded.get_config()) == json.dumps(model.get_config()) == config,
        "copy_starts_from_its_state": starts_equal,
        "masks_unchanged": np.array_equal(drawn, drawn_afterwards),
        "loaded_output_difference": largest(loaded.predict_on_batch(images), model.predict_on_batch(images)),
        "has_the_weights_of_the_copy": largest(values(model), values(copy)) == 0,
    }


def measure_schedule(strategy, dataset):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = insert_dropout(small_model(), "relu2", 0.4, adjustable=True, seed=7)
    keras.config.set_dtype_policy("float32")
    copy = replicate(model, strategy)
    run = fit(copy, strategy, dataset, last=2, callbacks=[DropoutSchedule("warmup", 1)])
    copy_state(copy, model)
    layer, kept = copy.get_layer("relu2_dropout"), {}
    for rate in (0.0, 0.4):
        layer.rate = rate
        kept[rate] = [float(mask.mean()) for mask in draw(layer, strategy, [(16, 8, 8, 8)])[0]]
    return {
        "policy": copy.dtype_policy.name,
        "losses": run["steps"],
        "logged": run["history"]["dropout_rate"],
        "kept": kept,
        "original": model.get_layer("relu2_dropout").rate,
    }


def measure_validation(strategy, dataset):
    seen = []

    class Watched(type(evaluation_batches(dataset, [], 1))):
        def read(self, batch):
            seen.extend(batch)
            return super().read(batch)

    members = range(TRAINING_IMAGES, TRAINING_IMAGES + 4)
    planned = evaluation_batches(dataset, members, 2 * 96 * 96)
    batches = Watched(dataset, planned.plan)
    model = small_model()
    model.compile(loss=SegmentationLoss("dice_ce"), metrics=scores(), jit_compile=False)
    callback = UpdateOriginal(model, batches.as_tf_dataset())
    copy = replicate(model, strategy)
    history = fit(copy, strategy, dataset, last=1, callbacks=[callback])["history"]
    counts, losses = 0, []
    for batch in planned.plan:
        images, truth = planned.read(batch)
        predicted = model.predict_on_batch(images)
        counts = counts + confusion_counts(truth[..., 0], predicted[..., 0] >= 0.5)
        losses += [
            float(SegmentationLoss("dice_ce")(truth[i : i + 1], predicted[i : i + 1])) for i in range(len(batch))
        ]
    assert (truth != IGNORED).any()
    return {
        "plan": [len(batch) for batch in planned.plan],
        "seen": sorted(seen),
        "original_follows": largest(values(model), values(copy)) == 0,
        "images": list(members),
        "val_dice": history["val_dice"][0],
        "by_hand": float(dice_from_counts(counts)[1]),
        "val_loss": history["val_loss"][0],
        "mean_of_images": float(np.mean(losses)),
    }


def measure_resume(strategy, dataset, folder):
    """The losses of the steps of the last epoch."""

    def variables(model):
        return [*model.variables, *model.optimizer.variables]

    def save_after_second(epoch, logs):
        if epoch == 1:
            save_state(folder, variables(whole), [{"epoch": epoch, "loss": 0.5} for epoch in range(2)])

    found = {}
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        model = insert_dropout(small_model(), "relu2", 0.3, adjustable=True, seed=7)
        keras.config.set_dtype_policy("float32")
        whole, resumed = replicate(model, strategy), replicate(model, strategy)
        saving = keras.callbacks.LambdaCallback(on_epoch_end=save_after_second)
        found[policy] = {
            "uninterrupted": fit(whole, strategy, dataset, callbacks=[saving])["steps"][-2:],
            "resumed": fit(
                resumed, strategy, dataset, first=2, before=lambda model: restore_state(folder, variables(model))
            )["steps"],
        }
    return found


def measure_overflow(strategy):
    """One step on images of which one, on the first device, the second or none, is infinite."""
    found = []
    for bad in (0, 2, None):
        keras.config.set_dtype_policy("mixed_float16")
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype="float32")])
        keras.config.set_dtype_policy("float32")
        copy = replicate(model, strategy)
        with strategy.scope():
            copy.compile(AgreedLossScale(keras.optimizers.Adam(1e-2)), "mse", jit_compile=False)
        inputs = np.ones((4, 4), "float32")
        if bad is not None:
            inputs[bad] = np.inf
        pairs = tf.data.Dataset.from_tensors((inputs, np.zeros((4, 1), "float32")))
        copy.fit(pairs, verbose=0, shuffle=False)
        found.append(
            {
                "largest_step": largest(values(model), values(copy)),
                "loss_scale": float(np.asarray(copy.optimizer.dynamic_scale)),
                "iterations": int(np.asarray(copy.optimizer.iterations)),
            }
        )
    return found


def measure_encoder_lr(strategy, folder):
    """A step of a training, with the factor 1 and with a smaller one."""
    steps = {factor: step_taken(folder / "cells", strategy, encoder_lr=factor) for factor in (1.0, 0.25)}
    return {factor: {"encoder": e.tolist(), "decoder": d.tolist()} for factor, (e, d) in steps.items()}


def measure_training(strategy, folder):
    """`segdrop.train` on one device and on both."""
    found = {}
    for gpus in ("one", "all"):
        run = folder / gpus
        config = TrainConfig(
            data=folder / "cells",
            run_dir=run,
            epochs=2,
            batch_size=BATCH,
            crop_size=32,
            encoder="resnet18",
            encoder_weights="none",
            mixed_precision="off",
            gpus=gpus,
        )
        with (
            mock.patch("segdrop.training.train.strategy_for", lambda gpus, _: strategy if gpus == "all" else None),
            mock.patch("segdrop.training.building.build_unet", build_small_unet),
        ):
            result = train(config)
        layers = result.model.layers
        found[gpus] = {name: [row[name] for row in result.history] for name in ("loss", "val_dice")} | {
            "device": json.loads((run / "config.json").read_text())["device"],
            "synchronised": any(getattr(layer, "synchronized", False) for layer in layers),
        }
    return found


def main(folder):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    dataset = open_cells(folder)

    def strategy():
        """Anew for each measurement, as several trainings of one process do."""
        return strategy_for("all", BATCH, DEVICES)

    found = {
        "batchnorm": measure_batchnorm(strategy(), dataset),
        "division": measure_division(strategy(), dataset),
        "masks": measure_masks(strategy()),
        "original": measure_original(strategy(), folder),
        "schedule": measure_schedule(strategy(), dataset),
        "validation": measure_validation(strategy(), dataset),
        "resume": measure_resume(strategy(), dataset, folder),
        "overflow": measure_overflow(strategy()),
        "agreement": measure_agreement(strategy(), dataset),
        "encoder_lr": measure_encoder_lr(strategy(), folder),
        "training": measure_training(strategy(), folder),
    }
    (folder / "measured.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
