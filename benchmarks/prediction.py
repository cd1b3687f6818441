"""What prediction and evaluation cost, and how far tiles are from the whole image, with a trained run.

    python benchmarks/prediction.py RUN huge [--side 20000]      # memory and speed on one huge TIFF
    python benchmarks/prediction.py RUN tiles                    # tiles against the whole image
    python benchmarks/prediction.py RUN monte_carlo              # 20 samples against 20 passes
    python benchmarks/prediction.py RUN evaluate [--images 1000] # time outside the model

Pictures are mosaics of the images of the run's data set. What is compared is timed in turn, in one process; ratios are
medians over the rounds.
"""

import argparse
import dataclasses
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import tifffile

from segdrop.data.opening import open_dataset
from segdrop.data.tiles import in_tiles
from segdrop.folders.run import open_run
from segdrop.inference.evaluate import evaluate
from segdrop.inference.network import load
from segdrop.inference.predict import predict
from segdrop.surgery.sampling import MonteCarlo
from segdrop.training.device import choose_device


def mosaic(dataset, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Images of the data set side by side, in 256-pixel squares."""
    rng = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.uint8)
    squares = [cv2.resize(dataset.read(int(i))[0], (256, 256)) for i in rng.permutation(len(dataset))[:60]]
    for top in range(0, height, 256):
        for left in range(0, width, 256):
            square = np.rot90(squares[rng.integers(len(squares))], rng.integers(4))
            picture[top : top + 256, left : left + 256] = square[: height - top, : width - left]
    return picture


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def huge(run: Path, dataset, side: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "huge.tif")
        band = mosaic(dataset, 2048, side)

        def tiles():
            for top in range(0, side, 512):
                rows = np.roll(band, -512 * (top // 512), axis=0)[:512]
                for left in range(0, side, 512):
                    tile = np.zeros((512, 512, 3), np.uint8)
                    part = rows[: side - top, left : left + 512]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

        tifffile.imwrite(
            file, tiles(), shape=(side, side, 3), dtype="uint8", tile=(512, 512), compression="zlib", photometric="rgb"
        )
        network, spent = load(run), []

        def timed(images: np.ndarray) -> np.ndarray:
            started = time.perf_counter()
            probabilities = network.probabilities(images)
            spent.append(time.perf_counter() - started)
            return probabilities

        network.probabilities(band[None, :1024, :1024].astype(np.float32))
        print(f"before: {peak_gigabytes():.2f} GB at the peak (with the mosaic that the file was made of)")
        whole = seconds(predict, dataclasses.replace(network, probabilities=timed), file, Path(folder, "out"))
        print(
            f"{side} x {side}: {len(spent)} tiles in {whole:.0f} s, peak {peak_gigabytes():.2f} GB; "
            f"{len(spent) / whole:.3f} tiles/s, {sum(spent) / whole:.3f} of the time in the model"
        )


def tiles(run: Path, dataset) -> None:
    exact = load(run, precision="float32")
    # A tile of twice the margin on both sides is 4224 pixels high: one that is as narrow as a picture may be.
    image = mosaic(dataset, 6400, 256).astype(np.float32)
    whole = exact.probabilities(image[None])[0]
    for margin in (1056, 512, 256, 0):
        tiled = in_tiles(exact.probabilities, image, 4224, 2112, margin=margin)
        print(
            f"float32, tile 4224, overlap 2112, margin {margin}: largest difference {np.abs(tiled - whole).max():.1e}"
        )
    network = load(run)
    image = mosaic(dataset, 2048, 2560).astype(np.float32)
    labels = network.labels(network.probabilities(image[None])[0])
    for tile, overlap in ((1024, 256), (512, 128), (256, 64)):
        tiled = network.labels(in_tiles(network.probabilities, image, tile, overlap))
        same = (tiled == labels).mean()
        print(f"2048 x 2560, tile {tile}, overlap {overlap}: {same:.4%} of the labels as in the whole image")


def monte_carlo(run: Path, dataset, rounds: int = 7, samples: int = 20) -> None:
    network = load(run)
    sampler = MonteCarlo(network.model, samples)

    def plainly(image):
        for _ in range(samples):
            network.model.predict_on_batch(image)

    for side in (256, 512):
        image = mosaic(dataset, side, side)[None].astype(np.float32)
        ratios, passes = [], []
        for number in range(rounds + 1):
            plain, drawn = seconds(plainly, image), seconds(sampler.moments, image)
            if number:  # the first traces the graphs
                ratios.append(drawn / plain)
                passes.append(plain)
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{side} x {side}: {samples} samples take {statistics.median(ratios):.3f} of {samples} passes "
            f"(quartiles {low:.3f}, {high:.3f}; {statistics.median(passes):.2f} s)"
        )


def evaluation(run: Path, dataset, images: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        for part in ("images", "masks"):
            (data / part).mkdir(parents=True)
        for number in range(images):
            rng = np.random.default_rng(number)
            members = rng.integers(len(dataset), size=4)
            pairs = [dataset.read(int(i)) for i in members]
            pairs = [
                (cv2.resize(image, (256, 256)), cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST))
                for image, mask in pairs
            ]
            for part, k in (("images", 0), ("masks", 1)):
                four = [pair[k] for pair in pairs]
                joined = np.concatenate([np.concatenate(four[:2], 1), np.concatenate(four[2:], 1)])
                cv2.imwrite(str(data / part / f"{number:04}.png"), joined[..., ::-1] if k == 0 else joined)
        copy = Path(folder, "run")
        copy.mkdir()
        for name in ("config.json", "model.keras", "split.csv", "metrics.json"):
            (copy / name).write_bytes((run / name).read_bytes())
        result = evaluate(copy, data, "all")
        outside = 1 - result["seconds_in_model"] / result["seconds"]
        print(
            f"{images} images of 512 x 512: {result['seconds']:.0f} s, "
            f"{result['seconds_in_model']:.0f} s in the model, {outside:.1%} outside it"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("part", choices=("huge", "tiles", "monte_carlo", "evaluate"))
    parser.add_argument("--side", type=int, default=20000)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    print(choose_device("auto"))
    dataset = open_dataset(open_run(options.run).config.data)
    if options.part == "huge":
        huge(options.run, dataset, options.side)
    elif options.part == "tiles":
        tiles(options.run, dataset)
    elif options.part == "monte_carlo":
        monte_carlo(options.run, dataset)
    else:
        evaluation(options.run, dataset, options.images)


if __name__ == "__main__":
    main()
