"""The examples in the docstrings run, and give what stands there; every public name has one.

They take for granted `segdrop`, `np` and `keras`, and what their own module defines; and in the current folder the data
set data/cells, a finished run (runs/first), a finished sweep (sweeps/mine), and image.png.
"""

import doctest
import importlib
import inspect
import io
import pkgutil
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import needs_the_keras_that_made_it
from standin import build_small_unet

import segdrop

ROOT = Path(__file__).parents[1]
MADE = ROOT / "tests" / "made_by_0_4"
MOST_LINES = 5
# Modules of which every public function has an example.
ROOMS = [
    "config.arms",
    "data.appearance",
    "data.findings",
    "data.fingerprint",
    "data.opening",
    "data.overview",
    "data.splits",
    "data.tiles",
    "images.opening",
    "scoring.counts",
    "scoring.falls",
    "scoring.learning",
    "scoring.reliability",
    "scoring.statistics",
    "scoring.surfaces",
    "scoring.uncertainty",
]
# What has one beside them and beside all that `import segdrop` offers.
FURTHER = [
    "inference.network.Network.labels",
    "inference.network.Network.open",
    "inference.network.Network.predict",
    "inference.network.Network.preprocess",
    "layers.AdjustableDropout",
    "layers.DropBlock2D",
    "layers.FixedMode",
    "show.tables.Table",
    "training.losses.SegmentationLoss",
    "training.metrics.Dice",
    "training.metrics.IoU",
    "training.optimizer.PartwiseAdamW",
    "training.optimizer.WarmupCosine",
]
SHOWN_ELSEWHERE = {"training.train.TrainResult"}  # by `train`, which alone makes one


def own(module):
    """The public functions and classes that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def examples_in(module):
    names = {"segdrop": segdrop, "np": np, "keras": keras, **own(module)}
    return [one for one in doctest.DocTestFinder().find(module, globs=names) if one.examples]


MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(segdrop.__path__, "segdrop.")
    if not found.name.endswith(".__main__")  # to import it is to run the command
]
EXAMPLES = {one.name.removeprefix("segdrop."): one for module in MODULES for one in examples_in(module)}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the examples take for granted; the network that they train is a small one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cells").symlink_to(ROOT / "data" / "cells")
    shutil.copytree(MADE / "run", tmp_path / "runs" / "first")
    shutil.copytree(MADE / "sweep", tmp_path / "sweeps" / "mine")
    shutil.copy(ROOT / "data" / "cells" / "images" / "test_000.png", tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segdrop.training.building.build_unet", build_small_unet)


def opens_a_run(name):
    return any(folder in step.source for step in EXAMPLES[name].examples for folder in ("runs/first", "sweeps/mine"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[needs_the_keras_that_made_it] if opens_a_run(name) else []) for name in EXAMPLES],
)
def test_an_example_gives_what_stands_there(name, workplace):
    told = io.StringIO()
    # Dots stand for what varies, and long output may be wrapped.
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(EXAMPLES[name], out=told.write).failed == 0, told.getvalue()


def test_every_public_name_has_an_example():
    offered = [getattr(segdrop, name) for name in segdrop.__all__ if name != "__version__"]
    for room in ROOMS:
        offered += filter(inspect.isfunction, own(importlib.import_module(f"segdrop.{room}")).values())
    public = {f"{one.__module__}.{one.__qualname__}".removeprefix("segdrop.") for one in offered} | set(FURTHER)
    assert sorted(public - SHOWN_ELSEWHERE - EXAMPLES.keys()) == []


def test_an_example_is_at_most_five_lines_long():
    lines = {name: sum(step.source.count("\n") for step in one.examples) for name, one in EXAMPLES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
