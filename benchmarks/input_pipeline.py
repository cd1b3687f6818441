"""The input pipeline: augmented images per second, and what it takes of a training step's time.

    python benchmarks/input_pipeline.py [--sizes 128 256 512] [--workers 1 2] [--rounds 9] [--seconds 2]
        [--pytorch PYTHON] [--steps 20] [--out FILE.json]

Needs PyTorch, in this environment or in that of PYTHON, for its DataLoader. Images of one and a half times the crop's
side lie decoded in memory; the preset is medical, the batch 8. Each contestant is a process of its own (with its
workers), and in every round each makes the same number of batches while the others wait, in an order that is drawn
anew. `raw` is a loop over images in one thread, crop and Albumentations, without batches; with 2 workers it is two such
loops at once, which is all that the machine can do. What is told are medians, and medians of the ratios within a round
with their 95% intervals (bootstrap). `--steps 0` leaves out the training; there, a round is so many steps of a resnet34
U-Net on the pipeline's batches and on one batch that stays.
Run it on a machine that does nothing else.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import answering
import cv2
import numpy as np
from answering import Process

BATCH, IMAGES = 8, 32


def write_images(folder: Path, size: int) -> None:
    """Blurred noise, the brighter part of which is foreground."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(IMAGES):
        image = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), size / 50)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), (image[..., 0] > 150).astype(np.uint8))


def raw(dataset, sampler, size: int, workers: int) -> Callable[[int], float]:
    cv2.setNumThreads(1)

    def make(batches: int) -> float:
        started = time.perf_counter()
        for number in range(batches * BATCH):
            sampler(*dataset.read(number % IMAGES), (0, number))
        return time.perf_counter() - started

    return make


def segdrop(dataset, sampler, size: int, workers: int) -> Callable[[int], float]:
    from segdrop.data.augmenting import Augmenters
    from segdrop.data.batches import training_batches

    augmenters = Augmenters(sampler, workers, (BATCH, size, size, 3), "uint8")

    def make(batches: int) -> float:
        what = {"batch_size": BATCH, "crop_size": size, "seed": 0, "first_epoch": 0, "epochs": 1}
        made = training_batches(dataset, range(IMAGES), sampler, **what, steps=batches, augmenters=augmenters)
        started = time.perf_counter()
        for _ in made:
            pass
        return time.perf_counter() - started

    return make


def dataloader(dataset, sampler, size: int, workers: int) -> Callable[[int], float]:
    import torch

    torch.set_num_threads(1)

    class Samples(torch.utils.data.Dataset):
        length = 0

        def __len__(self):
            return self.length

        def __getitem__(self, number):
            return sampler(*dataset.read(number % IMAGES), (0, number))

    loaders = {}

    def make(batches: int) -> float:
        if batches not in loaders:
            loaders.clear()
            samples = Samples()
            samples.length = batches * BATCH
            loaders[batches] = torch.utils.data.DataLoader(
                samples, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=True
            )
            for _ in loaders[batches]:  # the workers start
                pass
        started = time.perf_counter()
        for _ in loaders[batches]:
            pass
        return time.perf_counter() - started

    return make


def training(dataset, sampler, size: int, workers: int) -> Callable[[int], list[float]]:
    """Seconds of so many steps on the pipeline's batches, and on one batch."""
    import keras

    from segdrop.data.augmenting import Augmenters
    from segdrop.data.batches import training_batches
    from segdrop.nets.unet import build_unet
    from segdrop.surgery.fast import fast
    from segdrop.training.device import choose_device, precision_policy

    _, precision = choose_device("auto")
    with precision_policy(precision):
        model = fast(build_unet("resnet34", encoder_dropout=0.2, spatial=True, encoder_weights=None))
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    augmenters = Augmenters(sampler, workers, (BATCH, size, size, 3), "uint8")
    what = {"batch_size": BATCH, "crop_size": size, "seed": 0, "first_epoch": 0, "epochs": 1}

    def timed(batches) -> float:
        begun = []
        first = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: begun.append(time.perf_counter()))
        model.fit(batches, epochs=1, callbacks=[first], verbose=0, shuffle=False)
        return begun[-1] - begun[0]  # the first step waits for the pipeline to begin

    def make(steps: int) -> list[float]:
        made = training_batches(dataset, range(IMAGES), sampler, **what, steps=steps + 1, augmenters=augmenters)
        one = training_batches(dataset, range(IMAGES), sampler, **what, steps=1).cache().repeat(steps + 1)
        return [timed(made), timed(one)]

    return make


KINDS = {"raw": raw, "segdrop": segdrop, "DataLoader": dataloader, "training": training}


def compete(kind: str, folder: str, size: int, workers: int) -> None:
    """A contestant: reads numbers of batches, answers with seconds."""
    from segdrop.data.augment import Sampler, load_augmentation
    from segdrop.data.opening import open_dataset

    make = KINDS[kind](open_dataset(folder), Sampler(load_augmentation("medical"), size), size, workers)
    answering.serve("ready", lambda batches: make(int(batches)))


def contestant(python: str, kind: str, folder: Path, size: int, workers: int) -> Process:
    """A process that makes batches when it is told how many."""
    environment = {} if kind == "training" else {"CUDA_VISIBLE_DEVICES": ""}
    return Process(python, __file__, "--serve", kind, str(folder), str(size), str(workers), **environment)


def interval(ratios: np.ndarray) -> list[float]:
    """Median and the ends of its 95% interval."""
    drawn = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    return [float(np.median(ratios)), *np.percentile(np.median(drawn, axis=1), [2.5, 97.5]).tolist()]


def in_words(ratio: list[float] | None) -> str:
    return "" if ratio is None else "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)


def measured(folder: Path, size: int, given) -> list[dict]:
    """A row for each contestant."""
    names = [("raw", workers) for workers in given.workers] + [("segdrop", 0)]
    names += [(kind, workers) for kind in ("segdrop", "DataLoader") for workers in given.workers]
    pythons = {"DataLoader": given.pytorch}
    contestants = {
        (kind, workers): [
            contestant(pythons.get(kind, sys.executable), kind, folder, size, workers)
            for _ in range(workers if kind == "raw" else 1)
        ]
        for kind, workers in names
    }

    def rate(name: tuple[str, int], batches: int) -> float:
        """Images per second, of several loops together."""
        for one in contestants[name]:
            one.begin(str(batches // len(contestants[name])))
        seconds = max(one.answer() for one in contestants[name])
        return batches // len(contestants[name]) * len(contestants[name]) * BATCH / seconds

    batches = max(12, round(given.seconds * rate(names[0], 4) / BATCH))
    rates, rng = {name: [] for name in names}, np.random.default_rng(0)
    for number in range(-1, given.rounds):  # the first one warms up
        for index in rng.permutation(len(names)):
            measured_rate = rate(names[index], batches)
            if number >= 0:
                rates[names[index]].append(measured_rate)
    for one in (one for several in contestants.values() for one in several):
        one.end()
    rows, one_core = [], np.array(rates[names[0]])
    for kind, workers in names:
        mine = np.array(rates[kind, workers])
        row = {"size": size, "contestant": kind, "workers": workers, "images_per_second": statistics.median(mine)}
        row["of_cores"] = interval(mine / (max(1, workers) * one_core))
        row["of_loops"] = interval(mine / np.array(rates["raw", workers])) if ("raw", workers) in rates else None
        peer = rates.get(("DataLoader", workers))
        row["of_dataloader"] = interval(mine / np.array(peer)) if peer and kind == "segdrop" else None
        rows.append(row)
    return rows


def steps_of_training(folder: Path, size: int, given) -> list[dict]:
    """Seconds per step with each number of workers, and the ratio to those on one batch."""
    rows = []
    for workers in (0, *given.workers):
        process = contestant(sys.executable, "training", folder, size, workers)
        rounds = [process.ask(str(given.steps)) for _ in range(max(4, given.rounds // 2))]
        process.end()
        del rounds[0]  # which traced the step
        piped, fixed = np.array(rounds).T / given.steps
        row = {"size": size, "workers": workers, "seconds": statistics.median(piped)}
        rows.append({**row, "seconds_on_one_batch": statistics.median(fixed), "ratio": interval(piped / fixed)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the raw loop in a round")
    parser.add_argument("--pytorch", default=sys.executable, help="Python of an environment with PyTorch and segdrop")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        kind, folder, size, workers = given.serve
        return compete(kind, folder, int(size), int(workers))
    rows, steps = [], []
    with tempfile.TemporaryDirectory() as parent:
        print("| size | pipeline | workers | images/s | of workers x one raw loop |", end=" ")
        print("of as many raw loops at once | of the DataLoader |\n|---|---|---|---|---|---|---|")
        for size in given.sizes:
            write_images(Path(parent, str(size)), size * 3 // 2)
            for row in measured(Path(parent, str(size)), size, given):
                rows.append(row)
                print(
                    "| {size} | {contestant} | {workers} | {images_per_second:.0f} |".format(**row),
                    " | ".join(in_words(row[key]) for key in ("of_cores", "of_loops", "of_dataloader")),
                    "|",
                    flush=True,
                )
        if given.steps:
            print("\n| size | workers | step | on one batch | ratio |\n|---|---|---|---|---|")
            for row in steps_of_training(Path(parent, str(given.sizes[0])), given.sizes[0], given):
                steps.append(row)
                text = "| {size} | {workers} | {seconds:.3f} s | {seconds_on_one_batch:.3f} s |".format(**row)
                print(text, in_words(row["ratio"]), "|", flush=True)
    if given.out:
        given.out.write_text(json.dumps({"rates": rows, "steps": steps}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
