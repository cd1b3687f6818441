"""How time and memory grow: with images' size, batch, cores, the number of images, and of a sweep's trainings.

    python benchmarks/growth.py [--what training batch cores prediction start sweep] [--images 100 1000 10000 100000]
        [--rounds 5] [--folder FOLDER] [--out FILE.json]

Each point is a process of its own; told are the median seconds of `--rounds` repetitions after two that warm up, the
most memory that the process has held, and the exponent between a row and the one above: of seconds 1 is linear. The
network is a resnet34 U-Net with random weights, in float32. Seconds of the processor, of all cores together, are told,
too: they depend less on what else the machine does.

- training, batch: a step on 2 crops by their size, and on crops of 128 pixels by their number.
- cores: a step on 8 crops of 128 pixels; exponent -1 would be twice as fast on twice as many.
- prediction: `segdrop.load(run).predict` of an image, in tiles where it is larger than one.
- start: all that `segdrop train` does with a data set of PNG files of 32 x 32 pixels before it trains: opened, checked,
  split, planned, up to its first batch. "first" finds an empty cache folder, "second" what the first has left in it.
  100,000 images are 800 MB on most disks, made in FOLDER (by default a temporary one) and left there if it is given.
- sweep: the answer of a sweep of 10 folds, and its files, by its trainings; that reading them is left out.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

SERIES = {
    "training": [64, 128, 256, 512],
    "batch": [1, 2, 4, 8, 16],
    "cores": [1, 2],
    "prediction": [64, 128, 256, 512, 1024, 2048],
    "start": [],
    "sweep": [10, 100, 1000],
}


def repeated(step, rounds: int) -> dict:
    """The median seconds of a step, and of the processor in it."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter(), time.process_time()
        step()
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, processor = map(statistics.median, zip(*seconds[2:], strict=True))
    return {"seconds": wall, "processor_seconds": processor}


def training(size: int, batch: int, rounds: int) -> dict:
    """A step of what `segdrop train` fits."""
    import keras

    import segdrop
    from segdrop.training.device import choose_device
    from segdrop.training.losses import SegmentationLoss
    from segdrop.training.metrics import Dice, IoU
    from segdrop.training.optimizer import OneDeviceAdamW

    choose_device("off", "on")
    keras.utils.set_random_seed(0)
    model = segdrop.fast(segdrop.build_unet(encoder_weights=None, encoder_dropout=0.2, spatial=True, seed=0))
    optimizer = OneDeviceAdamW(1e-4, weight_decay=1e-4)
    model.compile(optimizer, SegmentationLoss(), metrics=[Dice(), IoU()], jit_compile=False)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (batch, size, size, 3)).astype("float32")
    masks = rng.integers(0, 2, (batch, size, size, 1)).astype("uint8")
    return repeated(lambda: model.train_on_batch(images, masks), rounds)


def prediction(size: int, rounds: int) -> dict:
    import segdrop

    with tempfile.TemporaryDirectory() as folder:
        segdrop.build_unet(encoder_weights=None).save(f"{folder}/model.keras")
        network = segdrop.load(f"{folder}/model.keras")
        image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        return repeated(lambda: network.predict(image), rounds)


def make_images(folder: Path, first: int, last: int) -> None:
    """Images of two discs and noise, so that no two are alike, and their masks."""
    import cv2

    for number in range(first, last):
        rng, mask = np.random.default_rng(number), np.zeros((32, 32), np.uint8)
        for x, y, radius in zip(*rng.integers(4, 28, (2, 2)).tolist(), rng.integers(2, 6, 2).tolist(), strict=True):
            cv2.circle(mask, (x, y), radius, 1, -1)
        image = (mask * 120 + 40)[..., None] + rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"image_{number:06d}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"image_{number:06d}.png"), mask)


def data_set(folder: Path, count: int) -> Path:
    """A data set of so many images, made where it is not there."""
    made = folder / str(count)
    if not (made / "masks" / f"image_{count - 1:06d}.png").is_file():
        for part in ("images", "masks"):
            (made / part).mkdir(parents=True, exist_ok=True)
        edges = [*range(0, count, 500), count]
        with ProcessPoolExecutor() as pool:
            list(pool.map(make_images, [made] * (len(edges) - 1), edges, edges[1:]))
    return made


def start(data: str, splits: str) -> dict:
    """From nothing but a configuration to the first batch."""
    import segdrop
    from segdrop.data.augment import load_augmentation
    from segdrop.data.opening import open_configured
    from segdrop.data.splits import split_dataset
    from segdrop.data.values import values_of
    from segdrop.folders.run import write_split
    from segdrop.training.device import Machine
    from segdrop.training.planning import make_plan
    from segdrop.training.samples import Samples

    laps, config = (
        {"": (time.perf_counter(), time.process_time())},
        segdrop.TrainConfig(data=data, encoder_weights="none"),
    )

    def lap(name: str) -> None:
        laps[name] = time.perf_counter(), time.process_time()

    dataset = open_configured(config)
    lap("open")
    split = split_dataset(dataset, config.seed)
    lap("split")
    machine = Machine("CPU", speed=3e5, memory=8e9)
    config = make_plan(config, dataset, split["train"], split["val"], machine).config
    lap("plan")
    augmentation = load_augmentation(config.augment, colours=config.has_colours)
    samples = Samples(config, dataset.scaled(config.scale), split, augmentation)
    values_of(dataset, split["train"])
    samples.evaluation("val")
    write_split(Path(splits), dataset, split)
    next(iter(samples.training(0, config.epochs)))
    lap("first batch")
    times = list(laps.items())
    told = {name: now[0] - before[0] for (_, before), (name, now) in itertools.pairwise(times)}
    (begin, begin_cpu), (end, end_cpu) = laps[""], laps["first batch"]
    return {"seconds": end - begin, "processor_seconds": end_cpu - begin_cpu, "digest": dataset.digest, **told}


def sweep(trainings: int, out: str, rounds: int) -> dict:
    from segdrop.sweeps.answer_files import write_answer
    from segdrop.sweeps.answer_page import write_answer_page
    from segdrop.sweeps.comparing import answer
    from segdrop.sweeps.results import Arm, Results, Training

    rng, folds = np.random.default_rng(0), 5 if trainings == 10 else 10
    arms = [Arm("none", 0.0, "none", 0, {})]
    rates = [number / 200 for number in range(1, trainings // folds)]
    arms += [Arm(f"spatial {rate}", rate, "spatial", 0, {"encoder_dropout": rate}) for rate in rates]

    def made(arm: int, fold: int) -> Training:
        dice, names = rng.uniform(0.7, 0.9, 20).tolist(), [f"{fold}_{i}" for i in range(20)]
        scores = {"dice": statistics.mean(dice), "iou": 0.7, "train_dice": 0.9, "ece": 0.03, "ece_foreground": 0.2}
        told = {"arm": arm, "repeat": 0, "fold": fold, "seed": 0, "best_epoch": 9, "epochs": 20, "seconds": 120.0}
        return Training(**told, **scores, brier=0.05, images=dict(zip(names, dice, strict=True)))

    results = Results(
        title="Stand-ins",
        facts={},
        arms=arms,
        folds=folds,
        repeats=1,
        seeds=(0,),
        test_share=0.2,
        trainings=[made(arm, fold) for arm in range(len(arms)) for fold in range(folds)],
        failures=(),
        groups=None,
    )

    def conclude() -> None:
        found = answer(results)
        write_answer(Path(out), found)
        write_answer_page(Path(out) / "answer.html", found)

    return repeated(conclude, rounds)


def measured(folder: Path, cores: int | None = None, **point) -> dict:
    """What a process of its own tells of a point."""
    words = [sys.executable, __file__, "--point", json.dumps(point)]
    # "second" finds what "first" has left; whatever the user has in the cache folder takes no part.
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "SEGDROP_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    run = subprocess.run(
        words,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, range(cores))) if cores else None,
    )
    return {**json.loads(run.stdout.splitlines()[-1]), "process_seconds": time.perf_counter() - began}


def points(what: str, folder: Path, given):
    """A name, a number and what was measured, for each point of a series."""
    each = {"rounds": given.rounds}
    for number in given.images if what == "start" else SERIES[what]:
        if what == "training":
            yield "", number, measured(folder, what="training", size=number, batch=2, **each)
        elif what == "batch":
            yield "", number, measured(folder, what="training", size=128, batch=number, **each)
        elif what == "cores":
            yield "", number, measured(folder, number, what="training", size=128, batch=8, **each)
        elif what == "prediction":
            yield "", number, measured(folder, what="prediction", size=number, **each)
        elif what == "sweep":
            yield "", number, measured(folder, what="sweep", trainings=number, out=str(folder), **each)
        else:
            data = data_set(folder, number)
            time.sleep(3)  # files that were changed just now are not kept
            for file in (folder / "cache").glob("*"):
                file.unlink()
            for name in ("first", "second"):
                told = {"data": str(data), "splits": str(folder / "split.csv")}
                yield name, number, measured(folder, what="start", **told)


def show(what: str, name: str, number: int, row: dict, above: dict | None) -> None:
    exponent = ""
    if above:
        exponent = f"{math.log(row['seconds'] / above['seconds']) / math.log(number / above['number']):.2f}"
    parts = ", ".join(f"{key} {row[key]:.2f}" for key in ("open", "split", "plan", "first batch") if key in row)
    processor = f"{row['processor_seconds']:.2f} s" if "processor_seconds" in row else ""
    told = f"{row['seconds']:.3f} s | {exponent} | {row['memory_gb']:.2f} GB | {processor} | {parts} |"
    print(f"| {what} {name} | {number:,} | {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=list(SERIES), choices=list(SERIES))
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        point = json.loads(given.point)
        programs = {"training": training, "prediction": prediction, "start": start, "sweep": sweep}
        told = programs[point.pop("what")](**point)
        print(json.dumps({**told, "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    rows = []
    print("| | number | seconds | exponent | memory | of the processor | parts |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for what in given.what:
            above: dict[str, dict] = {}
            for name, number, row in points(what, folder, given):
                row = {"what": what, "name": name, "number": number, **row}
                show(what, name, number, row, above.get(name))
                above[name] = row
                rows.append(row)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
