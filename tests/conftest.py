import csv
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
# The user's own cache takes no part in tests.
os.environ["SEGDROP_CACHE"] = os.path.join(tempfile.mkdtemp(prefix="segdrop_tests_"), "segdrop")

import cv2
import h5py
import hypothesis  # noqa: F401 (what it manages it looks for among what is not frozen yet)
import keras
import numpy as np
import optuna
import pytest
from packaging.version import Version
from postgresql import Unavailable, server
from standin import build_small_unet

from segdrop.cells import draw_cells
from segdrop.config.train import TrainConfig
from segdrop.files import write_json
from segdrop.nets.sites import encoder_layers
from segdrop.nets.unet import build_unet


def pytest_collection_finish():
    """What is imported by now stays; looking through it again and again took the garbage collector a tenth of all
    time. Left alone it also looks sooner through the rest, where dead networks are."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    shutil.rmtree(os.path.dirname(os.environ["SEGDROP_CACHE"]), ignore_errors=True)


def write_pairs(folder, pairs):
    """Write {id: (image, mask)} as a data set's images/ and masks/; colours in RGB."""
    for part, number in (("images", 0), ("masks", 1)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, pair in pairs.items():
            picture = pair[number]
            if picture is not None:
                picture = picture if picture.ndim == 2 else picture[..., ::-1]
                assert cv2.imwrite(str(folder / part / f"{name}.png"), picture)
    return folder


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_weight_file(path, model):
    """Write the encoder's weights as Keras 2 does: the format and layout of the published ImageNet files."""
    with h5py.File(path, "w") as file:
        layers = [layer for layer in encoder_layers(model) if "dropout" not in layer.name]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0".encode() for weight in layer.weights]
            group.attrs["weight_names"] = names
            for name, value in zip(names, layer.get_weights(), strict=True):
                group.create_dataset(name.decode(), data=value)
    return path


def randomise(model, seed=0):
    """Give every weight, moving statistics too, a value of its own, so that a lost or swapped one shows."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape) if "moving" in w.path or "gamma" in w.path else rng.normal(0, 0.05, w.shape)
            for w in model.weights
        ]
    )
    return model


class Variable:
    """What stands for a Keras variable."""

    def __init__(self, value):
        self.value = np.asarray(value)
        self.shape = self.value.shape

    def __array__(self, dtype=None, copy=None):
        return self.value

    def assign(self, value):
        self.value = value


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_run(folder, model, *, class_names=("background", "foreground"), **fields):
    """A finished run of `model`, without a training: what a network's users read of it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    config = TrainConfig.from_json({"run_dir": str(folder), **fields}).to_json()
    record = {"config": config, "classes": model.output_shape[-1], "class_names": list(class_names)}
    write_json(folder / "config.json", record)
    return folder


def brightness_model(threshold=128.5, channel=0, classes=1, slope=1.0, channels=3):
    """A "network" that calls a pixel foreground where a channel is brighter than a value; surer with a larger slope."""
    inputs = keras.Input((None, None, channels))
    activation = "sigmoid" if classes == 1 else "softmax"
    pick = keras.layers.Conv2D(classes, 1, activation=activation, name="pick")
    model = keras.Model(inputs, pick(inputs))
    kernel = np.zeros((1, 1, channels, classes), "float32")
    kernel[0, 0, channel, -1] = slope
    bias = np.zeros(classes, "float32")
    bias[-1] = -threshold * slope
    pick.set_weights([kernel, bias])
    return model


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Eight 64 x 64 pictures of cells, split 4 / 2 / 2."""
    folder = tmp_path_factory.mktemp("data") / "cells"
    pairs = {f"cell_{i}": draw_cells(np.random.default_rng(i), 64) for i in range(8)}
    write_pairs(folder, pairs)
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    write_table(folder / "splits.csv", [{"id": i, "split": s} for i, s in zip(pairs, splits, strict=True)])
    return folder


@pytest.fixture(scope="session")
def plain():
    """A resnet18 U-Net without dropout, every weight set."""
    return randomise(build_unet("resnet18", encoder_weights=None))


def use_small_networks(patch):
    """Trainings build the small network, whatever their encoder: what they do around it is the same."""
    patch.setattr("segdrop.training.building.build_unet", build_small_unet)


@pytest.fixture
def small_unet(monkeypatch):
    use_small_networks(monkeypatch)


SMALL_AND_REAL = ("small", pytest.param("resnet18", marks=pytest.mark.slow))


@pytest.fixture(params=SMALL_AND_REAL)
def either_unet(request, monkeypatch):
    """What trainings of this test build: the small network, and slowly a ResNet."""
    if request.param == "small":
        use_small_networks(monkeypatch)
    return request.param


def tiny_training(data, **fields):
    """A training of seconds, the same in every process."""
    tiny = {"encoder": "resnet18", "encoder_weights": "none", "mixed_precision": "off", "crop_size": 32, "epochs": 1}
    tiny |= {"steps_per_epoch": "images", "augment": "medical", "scale": 1.0, "batch_size": 8, "patience": 15}
    tiny |= {"encoder_lr": 1.0}
    return TrainConfig(data=str(data), **{**tiny, **fields})


# Keras reads what older versions of it have written.
needs_the_keras_that_made_it = pytest.mark.skipif(
    Version(keras.__version__) < Version("3.15"), reason="tests/made_by_0_4 was written by a newer Keras"
)


@pytest.fixture(scope="module")
def postgresql():
    """A real PostgreSQL server."""
    try:
        with server() as running:
            yield running
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def quiet_optuna():
    """No lines about trials; its verbosity is put back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def float32_after():
    """Put the precision policy back."""
    yield
    keras.config.set_dtype_policy("float32")
