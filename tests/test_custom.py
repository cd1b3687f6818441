"""Dropout layers of the user's own: in networks, in trainings, and loaded again."""

import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import randomise, tiny_training, write_run
from standin import build_small_unet

import segdrop
from segdrop import InputError, TrainConfig, build_unet, insert_dropout
from segdrop.cli.main import main
from segdrop.config.arms import arms_of, default_grid, name_of
from segdrop.config.importing import import_object
from segdrop.config.sweep import SweepConfig
from segdrop.inference.network import load_model
from segdrop.layers import is_dropout
from segdrop.surgery.sampling import MonteCarlo
from segdrop.sweeps.state import check
from segdrop.training.building import build_model

DOCUMENT = (Path(__file__).parents[1] / "docs" / "dropout.md").read_text(encoding="utf-8")
SOURCE = re.search(r"```python\n(import keras\n.*?)```", DOCUMENT, flags=re.DOTALL)[1]
scope = {"__name__": __name__}
exec(SOURCE.replace('"mine"', '"tests"'), scope)
Noisy = scope["Noisy"]
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")


@pytest.fixture
def unet():
    return randomise(build_small_unet())


@pytest.fixture
def dropped(unet):
    return insert_dropout(unet, "stage3_unit1_relu2", 0.3, dropout_layer=Noisy, seed=7)


def test_a_layer_of_one_s_own_acts_in_training_and_leaves_inference_unchanged(unet, dropped):
    np.testing.assert_array_equal(dropped(IMAGES), unet(IMAGES))
    assert not np.allclose(dropped(IMAGES, training=True), unet(IMAGES, training=True))


def test_the_proof_covers_it(unet, dropped):
    rows = [row for row in segdrop.verify(unet, dropped, draws=100) if "Noisy" in row["check"]]
    assert [row["where"] for row in rows] == ["stage3_unit1_relu2_dropout"]


def test_the_proof_finds_one_that_does_nothing_in_training(unet):
    class Idle(Noisy):
        def call(self, inputs, training=False):
            return inputs

    idle = insert_dropout(unet, "stage3_unit1_relu2", 0.3, dropout_layer=Idle)
    with pytest.raises(
        segdrop.VerificationError, match=r"the input in training \(Idle\): .* found as it was, expected c"
    ):
        segdrop.verify(unet, idle, draws=100)


def test_the_table_lists_it_under_its_class(dropped):
    (row,) = segdrop.dropout_table(dropped)
    told = {name: row[name] for name in ("layer", "place", "part", "kind", "rate", "units", "dropped")}
    assert told == {
        "layer": "stage3_unit1_relu2_dropout",
        "place": "between_convs",
        "part": "encoder",
        "kind": "Noisy",
        "rate": 0.3,
        "units": None,
        "dropped": None,
    }


def test_a_class_made_of_keras_s_dropout_is_taken_and_proved_as_one(unet):
    class Halving(keras.layers.Dropout):
        def call(self, inputs, training=False):
            return inputs / 2 if training else inputs

    model = insert_dropout(unet, "relu0", 0.3, dropout_layer=Halving)
    assert segdrop.dropout_table(model)[0]["kind"] == "element"
    with pytest.raises(segdrop.VerificationError, match=r"kept values are rescaled \(element\): relu0_dropout"):
        segdrop.verify(unet, model, draws=100)


def test_it_is_taken_out_again(unet, dropped):
    assert [layer.name for layer in segdrop.remove_dropout(dropped).layers] == [layer.name for layer in unet.layers]


def test_monte_carlo_draws_it_and_leaves_batchnorm_unmoved(dropped):
    before = [np.array(weight) for weight in dropped.weights]
    twin = segdrop.monte_carlo(dropped, seed=1)
    samples = np.array([twin.predict(IMAGES, verbose=0) for _ in range(20)])
    assert samples.std(axis=0).max() > 0
    for old, weight in zip(before, dropped.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
    again = segdrop.monte_carlo(dropped, seed=1)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), samples[0])
    small = segdrop.monte_carlo(dropped, rate=0.001, seed=1)
    assert np.std([small.predict(IMAGES, verbose=0) for _ in range(20)], axis=0).max() < samples.std(axis=0).max()


def test_samples_of_one_that_shares_its_mask_in_a_batch_differ(unet):
    class Shared(Noisy):
        def call(self, inputs, training=False):
            if not training:
                return inputs
            shape = (1, *keras.ops.shape(inputs)[1:])
            mask = keras.random.uniform(shape, seed=self.seed_generator)
            return inputs * keras.ops.cast(mask > self.rate, inputs.dtype)

    model = insert_dropout(unet, "stage3_unit1_relu2", 0.3, dropout_layer=Shared)
    moments = MonteCarlo(model, samples=10).moments(IMAGES)
    mean, square = moments[..., 0], moments[..., 1]
    assert (square - mean**2).max() > 1e-6


def test_streams_follow_the_seed_and_the_site(unet):
    sites = ["stage3_unit1_relu1", "stage3_unit1_relu2"]
    first, second = (
        [
            layer.seed
            for layer in insert_dropout(unet, sites, 0.3, dropout_layer=Noisy, seed=7).layers
            if is_dropout(layer)
        ]
        for _ in range(2)
    )
    assert first == second and first[0] != first[1]


def test_it_computes_in_the_network_s_precision(float32_after):
    keras.config.set_dtype_policy("mixed_bfloat16")
    plain = build_small_unet()
    keras.config.set_dtype_policy("float32")
    model = insert_dropout(plain, "stage3_unit1_relu2", 0.3, dropout_layer=Noisy)
    assert model.get_layer("stage3_unit1_relu2_dropout").compute_dtype == "bfloat16"


def test_a_saved_model_gives_the_same_and_samples_still(dropped, tmp_path):
    dropped.save(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(IMAGES), dropped(IMAGES))
    assert type(loaded.get_layer("stage3_unit1_relu2_dropout")) is Noisy
    twin = segdrop.monte_carlo(loaded)
    assert not np.array_equal(twin(IMAGES), twin(IMAGES))


def test_build_unet_takes_a_class_or_a_function_and_ramps_its_rate():
    def make(rate, name, **options):
        return Noisy(rate, name=name, **options)

    for layer in (Noisy, make):
        model = build_unet("resnet18", encoder_weights=None, encoder_dropout=(0.1, 0.3), dropout_layer=layer)
        assert [(row["kind"], row["rate"]) for row in segdrop.dropout_table(model)] == [
            ("Noisy", 0.1),
            ("Noisy", 0.2),
            ("Noisy", 0.3),
        ]


class NoName(keras.layers.Layer):
    def __init__(self, rate):
        super().__init__()


class NoTraining(Noisy):
    def call(self, inputs):
        return inputs


class ForgetsRate(Noisy):
    def __init__(self, rate=0.1, **kwargs):
        super().__init__(rate, **kwargs)

    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "rate"}


class Always(Noisy):
    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


class Learns(Noisy):
    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=())


class Flattens(Noisy):
    def call(self, inputs, training=False):
        return keras.ops.mean(inputs, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dropout_layer": "mymodule:Noisy"},
            "must be a class of Keras layers, or a function .* got dropout_layer='my",
        ),
        ({"dropout_layer": int}, "must be a class of Keras layers"),
        ({"dropout_layer": Noisy(0.1)}, "must be a class of Keras layers, or a function that makes one for each site"),
        ({"dropout_layer": Noisy, "kind": "block"}, "takes the place of `kind`; give one of them, got kind='block'"),
        ({"dropout_layer": Noisy, "block_size": 3}, "`block_size` is not for a `dropout_layer`"),
        ({"dropout_layer": Noisy, "shared_across_batch": True}, "`shared_across_batch` is not for a `dropout_layer`"),
        (
            {"dropout_layer": Noisy, "adjustable": True},
            "`adjustable` is not for a `dropout_layer`: its rate is a plain",
        ),
        ({"dropout_layer": NoName}, r"must take a rate and `name`: NoName\(0.3, name='relu0_dropout'\) says .*name"),
        ({"dropout_layer": lambda rate, name: None}, r"must give a Keras layer, <lambda>\(0.3, .*\) gives None"),
        ({"dropout_layer": lambda rate, name: keras.layers.ReLU(name=name)}, "the `rate` that it is given.* rate=None"),
        ({"dropout_layer": lambda rate, name: Noisy(rate, name="mine")}, "gives name='mine', rate=0.3"),
        ({"dropout_layer": NoTraining}, "whose `call` takes `training`; that of NoTraining"),
        ({"dropout_layer": ForgetsRate}, "whose get_config has their `rate`; that of ForgetsRate"),
        ({"dropout_layer": Always}, "must return its input where `training` is false; 'relu0_dropout' does not"),
        ({"dropout_layer": Learns}, "must give layers without weights, .* has 'relu0_dropout/scale': put it in with"),
        ({"dropout_layer": Flattens}, "The layer for site 'relu0' must keep the shape"),
    ],
)
def test_what_is_no_dropout_is_an_error_of_one_line(unet, options, message):
    with pytest.raises(InputError, match=message) as found:
        insert_dropout(unet, "relu0", 0.3, **options)
    assert "\n" not in str(found.value)


def test_a_layer_with_weights_or_without_a_rate_is_no_dropout_whatever_its_name():
    built = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a_dropout")]).layers[0]
    built.rate = 0.5
    assert not is_dropout(built)
    assert not is_dropout(keras.layers.ReLU(name="a_dropout"))
    assert is_dropout(Noisy(0.5, name="a_dropout")) and not is_dropout(Noisy(0.5, name="a"))


# ------------------------------------------------------------------------------------------------ trainings


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The current folder, with a module that nothing has imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_dropout.py").write_text(SOURCE)
    yield "my_dropout"
    forget("my_dropout")


def forget(name):
    """As in a program that has not imported it."""
    module = sys.modules.pop(name, None)
    if module is not None:
        keras.saving.get_custom_objects().pop("mine>Noisy")


def test_a_class_becomes_a_text_in_the_configuration_that_names_it(module):
    config = TrainConfig(dropout_layer=import_object(f"{module}:Noisy", "dropout_layer"), encoder_dropout=0.1)
    assert config.dropout_layer == "my_dropout:Noisy"
    assert TrainConfig(**json.loads(json.dumps(config.to_json()))) == config


def local():
    class Inner(Noisy):
        pass

    return Inner


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda rate, name: None, "cannot be found again by name: test_custom:<lambda> is a lambda, lies within"),
        (local(), "cannot be found again by name: test_custom:local.<locals>.Inner"),
        (type("Main", (), {"__module__": "__main__"}), "cannot be found again by name: __main__:Main"),
        (3, "`dropout_layer` must be a class, a function or"),
        ("my_dropout", "`dropout_layer` must be \"module:Class\", got dropout_layer='my_dropout'"),
    ],
)
def test_what_no_other_process_could_find_is_an_error(layer, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(dropout_layer=layer)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"spatial": True}, "spatial"),
        ({"dropout_kind": "block"}, "dropout_kind"),
        ({"dropout_shared": True}, "dropout_shared"),
        ({"dropout_schedule": "ramp"}, "dropout_schedule"),
    ],
)
def test_options_of_segdrop_s_layers_are_not_for_it(fields, name):
    with pytest.raises(InputError, match=f"`{name}` is not for a dropout_layer"):
        TrainConfig(encoder_dropout=0.2, dropout_layer="keras.layers:GaussianDropout", **fields)


def test_every_arm_with_a_rate_has_it():
    train = TrainConfig(dropout_layer="keras.layers:GaussianDropout")
    assert "dropout_kind" not in default_grid(train, {})
    arms = arms_of(SweepConfig(train, {"encoder_dropout": [0.1, 0.2]}))
    assert [name_of(arm) for arm in arms] == ["none", *(f"keras.layers:GaussianDropout {rate}" for rate in (0.1, 0.2))]
    assert [arm.get("dropout_layer") for arm in arms] == [None, *["keras.layers:GaussianDropout"] * 2]


def test_a_training_uses_it_and_its_model_is_scored_after_importing_the_module(cells, module, small_unet, capsys):
    words = (
        "train --encoder resnet18 --encoder-weights none --mixed-precision off --crop-size 32 --epochs 1 --run-dir run"
    )
    layer = ["--encoder-dropout", "0.3", "--dropout-layer", "my_dropout:Noisy"]
    assert main([*words.split(), "--data", str(cells), *layer]) == 0
    config = json.loads(Path("run", "config.json").read_text())["config"]
    assert (config["dropout_layer"], config["dropout_kind"]) == ("my_dropout:Noisy", None)

    forget("my_dropout")
    capsys.readouterr()
    assert main(["evaluate", "run", "--mc-samples", "2"]) == 2
    assert capsys.readouterr().err == (
        "segdrop: run/model.keras has a layer of a class that is not known, Noisy; import the module that registers "
        "it, on the command line with --import my_dropout.\n"
    )
    assert "my_dropout" not in sys.modules  # what a run names is not imported by itself
    assert main(["evaluate", "run", "--mc-samples", "2", "--import", "my_dropout"]) == 0
    assert main(["inspect", "run", "--import", "my_dropout"]) == 0
    assert "Noisy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("predict", ["image.png", "--out", "masks"]),
        ("report", []),
        ("export", []),
        ("evaluate", []),
        ("inspect", []),
        ("sweep", ["--report", "--test"]),
    ],
)
def test_every_command_that_loads_a_model_imports_what_it_is_told(command, arguments, module, monkeypatch):
    """With a run that none of them can use: the module is imported before that is found."""
    assert main([command, "run", *arguments, "--import", module]) == 2
    assert module in sys.modules


def test_a_sweep_imports_it_before_the_first_training(cells, module, small_unet):
    train = tiny_training(cells, dropout_layer="my_dropout:Missing")
    with pytest.raises(InputError, match="`dropout_layer` is my_dropout:Missing, but my_dropout has no 'Missing'"):
        check(SweepConfig(train, {"encoder_dropout": [0.2]}, folds=2))


@pytest.mark.parametrize(
    ("code", "reference", "message"),
    [
        (
            None,
            "nothing:Noisy",
            "names a module that is not found: nothing; it must be installed or lie in the current",
        ),
        (
            "import nothing",
            "broken:Noisy",
            "cannot be imported, broken: ModuleNotFoundError: No module named 'nothing'",
        ),
        ("1 +", "broken:Noisy", "cannot be imported, broken: SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(code, reference, message, module, tmp_path):
    if code:
        (tmp_path / "broken.py").write_text(code)
    with pytest.raises(InputError, match=message):
        import_object(reference, "dropout_layer")


def test_nothing_in_the_current_folder_is_taken_for_a_library(module, tmp_path):
    (tmp_path / "colorsys.py").write_text("raise SystemError")
    sys.modules.pop("colorsys", None)
    assert import_object("colorsys:hsv_to_rgb", "dropout_layer")


def test_a_class_that_keras_could_not_load_again_is_found_before_the_training(cells, module, tmp_path):
    path = tmp_path / "my_dropout.py"
    path.write_text(path.read_text().replace("@keras", "# @keras"))
    config = tiny_training(cells, encoder_dropout=0.2, dropout_layer="my_dropout:Noisy")
    with pytest.raises(InputError, match="cannot load again; put @keras.saving.register_keras_serializable"):
        build_model(config, ("background", "cell"), None, "off")
    sys.modules.pop("my_dropout")


def test_a_model_file_without_a_run_says_what_to_do(module, tmp_path):
    layer = import_object(f"{module}:Noisy", "dropout_layer")
    write_run(tmp_path / "run", build_small_unet(encoder_dropout=0.3, dropout_layer=layer))
    forget(module)
    with pytest.raises(InputError, match="Noisy; import the module that registers it, .* --import MODULE"):
        load_model(tmp_path / "run" / "model.keras")
