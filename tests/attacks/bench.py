"""What attacks break: a data set, a finished and an interrupted run, a finished sweep, an exported network."""

import contextlib
import csv
import io
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # the stand-in and the helpers of the tests

TINY = {
    "--encoder": "resnet18", "--encoder-weights": "none", "--encoder-lr": "1", "--batch-size": "2", "--crop-size": "32",
    "--epochs": "1", "--steps-per-epoch": "1", "--patience": "5", "--scale": "1", "--augment": "none",
    "--mixed-precision": "off", "--deterministic": "off",
}  # fmt: skip
IMAGES = [f"cell_{i}" for i in range(6)]


def words(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


@dataclass(frozen=True)
class Bench:
    """The folder that an attack works in, and the unbroken originals."""

    base: Path
    folder: Path

    def take(self, *names: str) -> Path:
        """Copies of originals, to break."""
        for name in names:
            source, target = self.base / name, self.folder / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        return self.folder


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def use_small_networks() -> None:
    """Trainings build the small network of the tests, whatever their encoder."""
    from standin import build_small_unet

    import segdrop.training.building

    segdrop.training.building.build_unet = build_small_unet


def use_real_networks() -> None:
    import segdrop.training.building
    from segdrop.nets.unet import build_unet

    segdrop.training.building.build_unet = build_unet


def write_cells(folder: Path, size: int = 64) -> None:
    """Six pictures of cells with their masks and all tables that a data set may have."""
    import cv2

    from segdrop.cells import draw_cells

    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, name in enumerate(IMAGES):
        for part, picture in zip(("images", "masks"), draw_cells(np.random.default_rng(i), size), strict=True):
            cv2.imwrite(str(folder / part / f"{name}.png"), picture)
    splits = ["train", "train", "train", "val", "val", "test"]
    _write(folder / "splits.csv", [("id", "split"), *zip(IMAGES, splits, strict=True)])
    _write(folder / "groups.csv", [("id", "group"), *((name, f"patient {i}") for i, name in enumerate(IMAGES))])
    _write(
        folder / "meta.csv", [("id", "site", "spacing"), *((name, "ab"[i % 2], "0.5") for i, name in enumerate(IMAGES))]
    )
    (folder / "classes.json").write_text('{"0": "background", "1": "cell"}')


def _write(path: Path, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def make_base(base: Path) -> None:
    """Write the originals; takes some 20 seconds.

    Raises:
        RuntimeError: a command that has to succeed did not.
    """
    from conftest import brightness_model, write_run

    import segdrop.training.train as training
    from segdrop.cli.main import main

    use_small_networks()
    base.mkdir(parents=True)

    class Interrupted(training.Watch):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(code: int, *arguments: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            got = main(list(arguments))
        if got != code:
            raise RuntimeError(f"{' '.join(arguments)} ended with {got}")

    with inside(base):
        write_cells(Path("cells"))
        dropout = ["--encoder-dropout", "0.2", "--spatial"]
        run(0, "train", "--data", "cells", "--run-dir", "run", *words(TINY), *dropout)
        usual, training.Watch = training.Watch, Interrupted
        try:
            run(130, "train", "--data", "cells", "--run-dir", "broken", *words({**TINY, "--epochs": "3"}), *dropout)
        finally:
            training.Watch = usual
        run(0, "sweep", "sweep", "--data", "cells", "--rates", "0.2", "--folds", "2", *words(TINY))
        run(0, "sweep", "sweep", "--report", "--test")
        Path("sweep/test.json").rename("test.json")  # where it is there, the test images are not scored again
        write_run(Path("bright"), brightness_model(128.5))
        run(0, "export", "bright", "--out", "bright.onnx")
        shutil.rmtree("run/tensorboard"), shutil.rmtree("broken/tensorboard")  # never read


def scratch(base: Path, name: str) -> Bench:
    """A new folder for an attack."""
    folder = base.parent / "scratch" / f"{os.getpid()}" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Bench(base, folder)
