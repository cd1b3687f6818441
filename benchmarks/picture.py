"""The README's picture: images of a run's test split, their truth, the prediction, and how sure it is of each pixel.

    python benchmarks/picture.py runs/first docs/pictures/cells.png [--images 2]

The images are those whose Dice is nearest to the median. Uncertainty is the predictive entropy of 20 Monte Carlo
samples where the run has dropout, else that of its single prediction; the scale ends at 0.69 nats, that of a coin.
"""

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from matplotlib.figure import Figure

import segdrop
from segdrop.data.opening import open_configured
from segdrop.files import read_csv
from segdrop.folders.run import PER_IMAGE, open_run
from segdrop.show.plots import heat, overlay, visible


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=2)
    options = parser.parse_args()
    network, record = segdrop.load(options.run), open_run(options.run)
    dataset = open_configured(record.config).scaled(1)  # the network scales its images itself
    rows = [row for row in read_csv(Path(options.run, PER_IMAGE)) if row["split"] == "test" and row["dice"]]
    middle = np.median([float(row["dice"]) for row in rows])
    rows = sorted(rows, key=lambda row: abs(float(row["dice"]) - middle))[: options.images]
    samples = 20 if segdrop.dropout_table(network.model) else 0
    figure = Figure(figsize=(8, 2.15 * len(rows)), layout="constrained")
    for number, (row, axes) in enumerate(zip(rows, figure.subplots(len(rows), 4, squeeze=False), strict=True)):
        image, truth = dataset.read(dataset.ids.index(row["id"]))
        unsure = segdrop.predict_uncertainty(network, image, samples=samples)
        seen = visible(image)
        pictures = {
            "image": overlay(seen, np.zeros_like(truth)),
            "truth": overlay(seen, truth),
            f"prediction, Dice {float(row['dice']):.2f}": overlay(seen, network.labels(network.predict(image))),
            "uncertainty": heat(unsure.predictive_entropy, math.log(2)),
        }
        for one, (title, picture) in zip(axes, pictures.items(), strict=True):
            one.imshow(picture)
            one.axis("off")
            if number == 0 or "Dice" in title:
                one.set_title(title, fontsize=9)
    figure.savefig(options.out, dpi=100)
    print(f"{options.out}: {', '.join(row['id'] for row in rows)}")


if __name__ == "__main__":
    main()
