"""A training that starts from an earlier run: what is taken over, what is new, and what does not fit."""

import dataclasses
import functools
import hashlib
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import randomise, tiny_training, write_run
from standin import build_small_unet

from segdrop import InputError, SweepConfig, TrainConfig, build_unet, sweep, train
from segdrop.data.opening import open_dataset
from segdrop.files import write_json
from segdrop.folders.run import open_run
from segdrop.nets.sites import encoder_layers
from segdrop.nets.transfer import transfer
from segdrop.training.building import find_weights
from segdrop.training.folds import train_fold
from segdrop.training.session import Session

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 64, 96, 3)).astype("float32")


@functools.cache
def unet(encoder="resnet18", seed=0, **options):
    return randomise(build_unet(encoder, encoder_weights=None, **options), seed)


def weights_of(model):
    return {weight.path: np.array(weight) for weight in model.weights}


def is_encoder(model):
    """For each weight whether it is the encoder's."""
    encoder = {weight.path for layer in encoder_layers(model) for weight in layer.weights}
    return {weight.path: weight.path in encoder for weight in model.weights}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"encoder_dropout": 0.2, "kind": "block"}),
        ({"encoder_dropout": 0.2, "adjustable": True}, {}),
        ({"encoder_dropout": 0.5, "spatial": True}, {"encoder_dropout": 0.2, "placement": "branch_end"}),
    ],
)
def test_the_network_computes_what_the_earlier_one_does_whatever_their_dropout(theirs, ours):
    source, target = unet(**theirs), unet(seed=1, **ours)
    assert not np.allclose(source.predict_on_batch(IMAGES), target.predict_on_batch(IMAGES))
    loaded, new = transfer(source, target)
    np.testing.assert_array_equal(source.predict_on_batch(IMAGES), target.predict_on_batch(IMAGES))
    assert new == [] and sorted(loaded) == sorted(layer.name for layer in target.layers if layer.weights)


@pytest.mark.parametrize("parts", ["encoder", "decoder"])
def test_one_part_is_taken_and_the_other_left(parts):
    source, target = randomise(build_small_unet(), 0), randomise(build_small_unet(), 1)
    theirs, before, encoder = weights_of(source), weights_of(target), is_encoder(target)
    transfer(source, target, parts)
    for name, value in weights_of(target).items():
        np.testing.assert_array_equal(value, (theirs if encoder[name] == (parts == "encoder") else before)[name])


@pytest.mark.parametrize(("theirs", "ours"), [(1, 3), (3, 1), (4, 3)])
@pytest.mark.parametrize(("parts", "count"), [("both", 8), ("decoder", 1)])
def test_with_other_classes_the_last_convolution_alone_is_new(theirs, ours, parts, count):
    source, target = randomise(build_small_unet(classes=theirs), 0), randomise(build_small_unet(classes=ours), 1)
    before = target.get_layer("final_conv").get_weights()
    loaded, new = transfer(source, target, parts)
    assert (len(loaded), new) == (count, ["final_conv"])
    np.testing.assert_array_equal(target.get_layer("final_conv").get_weights()[0], before[0])
    kernels = [model.get_layer("decoder_stage0a_conv").get_weights()[0] for model in (source, target)]
    np.testing.assert_array_equal(*kernels)


def beginning(model):
    """What the layers that see the input's channels make of images."""
    return keras.Model(model.input, model.get_layer("stage1_unit1_conv1").output)


def with_statistics(model, mean, std):
    layer = model.get_layer("normalization")
    layer.scale, layer.offset = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return model


def test_images_are_brought_to_the_mean_and_deviation_of_the_earlier_run():
    source = with_statistics(unet("torchvision_resnet18"), (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
    target = unet("torchvision_resnet18", seed=1, encoder_dropout=0.2)
    decoder_alone = unet("torchvision_resnet18", seed=2)
    assert "normalization" in transfer(source, target)[0]
    made = [beginning(model).predict_on_batch(IMAGES) for model in (source, target)]
    np.testing.assert_array_equal(*made)
    assert np.ptp(made[0]) > 0.01
    transfer(source, decoder_alone, "decoder")
    assert decoder_alone.get_layer("normalization").scale != source.get_layer("normalization").scale


@pytest.mark.parametrize("encoder", ["resnet18", "torchvision_resnet18"])
def test_of_one_channel_it_computes_the_same_on_grey_images(encoder):
    source, target = unet(encoder, input_shape=(None, None, 1)), unet(encoder, seed=3)
    transfer(source, target)
    grey = IMAGES[..., :1]
    expected = beginning(source).predict_on_batch(grey)
    computed = beginning(target).predict_on_batch(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(computed, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("encoder", ["resnet18", "torchvision_resnet18"])
def test_input_channels_are_fitted_as_those_of_pretrained_weights_are(encoder):
    source, target = unet(encoder, seed=4), unet(encoder, input_shape=(None, None, 1))
    transfer(source, target, "encoder")
    kernels = [model.get_layer("conv0").get_weights()[0] for model in (source, target)]
    np.testing.assert_allclose(kernels[1], kernels[0].sum(axis=2, keepdims=True), rtol=1e-6)


DIFFERENCES = [  # options of the earlier network and of the new one, what is taken, what is said
    ({"encoder": "resnet34"}, {}, "both", "it has a layer 'stage1_unit3_bn1', which this network has not"),
    ({}, {"encoder": "resnet34"}, "encoder", "it has no layer 'stage1_unit3_bn1'"),
    ({"encoder": "torchvision_resnet18"}, {}, "encoder", "it has no layer 'bn_data'"),
    (
        {"decoder_filters": (128, 64, 32, 16, 16)},
        {},
        "decoder",
        r"its layer 'decoder_stage0a_conv' has weights of shape \[\(3, 3, 768, 128\)\], this network's .* 256\)\]",
    ),
    ({"decoder_block_type": "transpose"}, {}, "both", "it has no layer 'decoder_stage0a_conv'"),
]


@pytest.mark.parametrize(("theirs", "ours", "parts", "message"), DIFFERENCES)
def test_a_network_of_other_layers_is_refused_whole_and_the_first_of_them_named(theirs, ours, parts, message):
    source, target = unet(**theirs), unet(**ours, seed=5)
    before = target.get_weights()
    with pytest.raises(InputError, match=message):
        transfer(source, target, parts)
    for now, value in zip(target.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, value)


def test_parts_that_fit_are_taken_from_a_network_of_which_the_others_do_not():
    resnet34, other_decoder = unet("resnet34"), unet(decoder_filters=(128, 64, 32, 16, 16))
    assert transfer(resnet34, unet(seed=6), "decoder")[1] == []
    assert transfer(other_decoder, unet(seed=6), "encoder")[1] == []


def test_what_is_no_u_net_is_refused():
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(1, 1)])
    with pytest.raises(InputError, match="it is no U-Net of segdrop"):
        transfer(model, build_small_unet())


# In a training.


@pytest.fixture
def earlier(tmp_path):
    """An earlier run of the small network."""
    return write_run(tmp_path / "earlier", randomise(build_small_unet(encoder_dropout=0.3)))


def starting(data, folder, earlier, **fields):
    fields = {"encoder_weights": "auto", **fields}
    return tiny_training(data, run_dir=str(folder), init_from=str(earlier), **fields)


class Stopped(Exception):
    """Instead of a fit."""


def start_of(training, monkeypatch):
    """The weights that a training begins with."""
    seen = []

    def fit(session):
        seen.append(weights_of(session.model))
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Session, "fit", fit)
        training()
    return seen[0]


def no_weights(*_):
    raise AssertionError("weights are looked for")


def test_a_training_starts_from_a_run_s_weights_looks_for_no_others_and_says_so(
    cells, tmp_path, earlier, monkeypatch, small_unet, capsys
):
    monkeypatch.setattr("segdrop.training.building.resolve_weights", no_weights)
    config = starting(cells, tmp_path / "run", earlier, encoder_dropout=0.2, dropout_kind="block")
    start = start_of(lambda: train(config), monkeypatch)
    file = earlier / "model.keras"
    for name, value in weights_of(keras.saving.load_model(file)).items():
        np.testing.assert_array_equal(start[name], value)
    told = capsys.readouterr().out
    assert f"Weights: {file}\nStart:   9 of 9 layers from {file}\n" in told and "RANDOM" not in told
    record = open_run(tmp_path / "run")
    assert (record.warnings, record.encoder_weights) == ((), str(file))
    assert record.start == {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "parts": "both",
        "layers": 9,
        "new": [],
    }
    assert record.config.init_from == str(earlier)


def test_a_file_is_as_good_as_a_run_and_other_classes_get_a_new_head(cells, tmp_path, monkeypatch, small_unet, capsys):
    file = tmp_path / "mine.keras"
    randomise(build_small_unet(classes=4)).save(file)
    start_of(lambda: train(starting(cells, tmp_path / "run", file)), monkeypatch)
    assert f"Start:   8 of 9 layers from {file}; new: final_conv" in capsys.readouterr().out
    assert open_run(tmp_path / "run").start["new"] == ["final_conv"]


def test_the_decoder_alone_leaves_the_encoder_to_its_own_weights(
    cells, tmp_path, earlier, monkeypatch, small_unet, capsys
):
    options = {"init_parts": "decoder", "encoder_weights": "none"}
    start = start_of(lambda: train(starting(cells, tmp_path / "run", earlier, **options)), monkeypatch)
    plain = start_of(lambda: train(tiny_training(cells, run_dir=str(tmp_path / "plain"))), monkeypatch)
    stored = keras.saving.load_model(earlier / "model.keras")
    theirs, encoder = weights_of(stored), is_encoder(stored)
    for name, value in start.items():
        np.testing.assert_array_equal(value, (plain if encoder[name] else theirs)[name])
    assert "Weights: random\nStart:   2 of 2 decoder layers from " in capsys.readouterr().out


def test_a_whole_training_from_a_run_is_resumed_without_it(cells, tmp_path, earlier, monkeypatch, small_unet):
    config = starting(cells, tmp_path / "whole", earlier, epochs=2)
    whole = train(config)
    killed = dataclasses.replace(config, run_dir=str(tmp_path / "killed"))

    def record_epoch(session, row, original=Session.record_epoch):
        original(session, row)
        if row["epoch"] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "record_epoch", record_epoch)
        train(killed)
    shutil.rmtree(earlier)  # the state of the run is what counts
    resumed = train(dataclasses.replace(killed, resume=True))
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert open_run(tmp_path / "killed").start == open_run(tmp_path / "whole").start


def test_a_run_of_another_encoder_is_an_error_that_names_both_before_a_folder_is_made(cells, tmp_path):
    run = write_run(tmp_path / "earlier", unet("resnet34"), encoder="resnet34")
    told = (
        r"^`init_from` .*earlier/model.keras does not fit resnet18: it has a layer 'stage1_unit3_bn1', which this "
        r"network has not; it is of resnet34, so give --encoder resnet34\.$"
    )
    for source in (run, run / "model.keras"):
        with pytest.raises(InputError, match=told):
            train(starting(cells, tmp_path / "run", source))
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_decoder_is_an_error_that_does_not_blame_the_encoder(cells, tmp_path):
    run = write_run(tmp_path / "earlier", unet(decoder_block_type="transpose"), encoder="resnet18")
    with pytest.raises(InputError, match=r"no layer 'decoder_stage0a_conv'; it is of resnet18\.$"):
        train(starting(cells, tmp_path / "run", run))


def without_model(folder):
    write_run(folder, build_small_unet())
    (folder / "model.keras").unlink()


def sweep_folder(folder):
    folder.mkdir()
    write_json(folder / "sweep.json", {})


def other_file(folder):
    folder.write_bytes(b"PK no network")


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, r"`init_from` is neither a run's folder nor a file: .*thing\.$"),
        (without_model, InputError, "thing has no model.keras yet: no epoch has ended"),
        (sweep_folder, InputError, "thing is the folder of a sweep; name one of its trainings"),
        (lambda folder: folder.mkdir(), InputError, "thing is not a run of segdrop"),
        (other_file, InputError, "thing is not a Keras model that can be loaded"),
    ],
)
def test_what_is_no_network_to_start_from_leaves_no_folder(cells, tmp_path, prepare, error, message):
    prepare(tmp_path / "thing")
    with pytest.raises(error, match=message):
        train(starting(cells, tmp_path / "run", tmp_path / "thing"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_parts": "encoder"}, "`init_parts` needs init_from, the run to start from, got 'encoder' alone"),
        ({"init_from": "runs/a", "init_parts": "head"}, "`init_parts` must be one of both, encoder, decoder"),
        ({"init_from": 3}, "`init_from` must be text, got init_from=3"),
        (
            {"init_from": "runs/a", "encoder_weights": "imagenet"},
            "`encoder_weights` is 'imagenet', but the encoder's weights come from init_from='runs/a'; leave one",
        ),
        (
            {"init_from": "runs/a", "init_parts": "encoder", "encoder_weights": "none"},
            "`encoder_weights` is 'none', but",
        ),
    ],
)
def test_a_contradiction_is_named(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize("options", [{"encoder_weights": "imagenet", "init_parts": "decoder"}, {}])
def test_what_is_no_contradiction_is_taken(options):
    config = TrainConfig(init_from="runs/a", **options)
    assert TrainConfig(**json.loads(json.dumps(config.to_json()))) == config


def test_one_training_of_many_starts_there(cells, tmp_path, earlier, monkeypatch, small_unet):
    config = starting(cells, "", earlier, encoder_dropout=0.2)
    split = {"train": np.arange(4), "val": np.arange(4, 6), "test": np.arange(6, 8)}
    arguments = config, tmp_path / "run", open_dataset(cells), split, "off", find_weights(config)
    start = start_of(lambda: train_fold(*arguments), monkeypatch)
    for name, value in weights_of(keras.saving.load_model(earlier / "model.keras")).items():
        np.testing.assert_array_equal(start[name], value)
    assert open_run(tmp_path / "run").start["layers"] == 9


@pytest.mark.slow
def test_every_training_of_a_sweep_starts_there(cells, tmp_path, earlier, monkeypatch, small_unet, quiet_optuna):
    monkeypatch.setattr("segdrop.training.building.resolve_weights", no_weights)
    settings = dataclasses.replace(starting(cells, "", earlier), run_dir=None)
    sweep(tmp_path / "sweep", SweepConfig(settings, {"encoder_dropout": [0.2]}, folds=2))
    records = [open_run(folder) for folder in sorted((tmp_path / "sweep" / "trainings").iterdir())]
    assert [record.start["layers"] for record in records] == [9] * 4
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["random_weights"] is False


def test_what_does_not_fit_is_found_before_a_sweep_s_first_training(cells, tmp_path):
    run = write_run(tmp_path / "earlier", unet("resnet34"), encoder="resnet34")
    settings = dataclasses.replace(starting(cells, "", run), run_dir=None)
    with pytest.raises(InputError, match="does not fit resnet18: it has a layer 'stage1_unit3_bn1'"):
        sweep(tmp_path / "sweep", SweepConfig(settings, {"encoder_dropout": [0.2]}, folds=2))
    assert not (tmp_path / "sweep").exists()
