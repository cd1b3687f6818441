"""How far dropout moves BatchNorm's variance, by placement, on a trained model; and what that costs at inference.

    python benchmarks/batchnorm_shift.py RUN [--csv FILE]

Dropout is put into the trained network of RUN, any dropout taken out first, in every unit of the encoder (where the
placement has units), and as build_unet does by default. BatchNorm's statistics are estimated with dropout on, on an
epoch of the run's training crops without augmentation: what training would arrive at with these weights. The shift of
a BatchNorm is the median over its channels of that variance over the one that it meets at inference on the same crops;
printed are the mean and the largest over the encoder's. Dice is that of the validation split with those statistics,
without any further training.
"""

import argparse
import os
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from segdrop import batchnorm_shift, build_unet, recalibrate_batchnorm, remove_dropout
from segdrop.config.train import PLACEMENTS
from segdrop.data.augment import Sampler, load_augmentation
from segdrop.data.batches import evaluation_batches, training_batches
from segdrop.data.opening import open_dataset
from segdrop.folders.run import MODEL, open_run, recorded_split
from segdrop.scoring.score import score
from segdrop.show.tables import Table
from segdrop.training.device import precision_policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    config = open_run(options.run).config
    dataset = open_dataset(config.data, classes=config.classes, stratify=config.stratify)
    pixels = config.batch_size * config.crop_size**2
    validation = evaluation_batches(dataset, recorded_split(options.run, dataset, "val"), pixels)
    crops = training_batches(
        dataset,
        recorded_split(options.run, dataset, "train"),
        Sampler(load_augmentation("none"), config.crop_size),
        batch_size=config.batch_size,
        crop_size=config.crop_size,
        seed=0,
        first_epoch=0,
        epochs=1,
    )
    images = [batch.numpy() for batch, _ in crops]
    plain = remove_dropout(keras.saving.load_model(options.run / MODEL, compile=False), all=True)

    rows = []

    def measure(place: str, kind: str, rate: float, model: keras.Model) -> None:
        ratios = [row["ratio"] for row in batchnorm_shift(model, images)]
        dice = score(model.predict_on_batch, validation, dataset.class_names)["dice"]
        rows.append(
            {
                "placement": place,
                "kind": kind,
                "rate": rate,
                "shift_mean": float(np.mean(ratios)),
                "shift_max": float(np.max(ratios)),
                "val_dice": float("nan") if dice is None else dice,
            }
        )
        print(rows[-1], flush=True)

    measure("as trained", "-", 0.0, plain)
    calibrated = remove_dropout(plain)
    recalibrate_batchnorm(calibrated, images)
    measure("no dropout", "-", 0.0, calibrated)
    precision = open_run(options.run).mixed_precision
    for placement in (*PLACEMENTS, "default"):
        for kind in ("spatial", "element"):
            for rate in (0.2, 0.5):
                everywhere = {"placement": placement, "blocks": "stage*"}
                if placement in ("bottleneck", "skips"):
                    everywhere["blocks"] = None
                with precision_policy(precision):
                    model = build_unet(
                        config.encoder,
                        classes=plain.output_shape[-1],
                        encoder_weights=None,
                        encoder_dropout=rate,
                        kind=kind,
                        seed=0,
                        **({} if placement == "default" else everywhere),
                    )
                model.set_weights(plain.get_weights())
                recalibrate_batchnorm(model, images, dropout=True)
                measure(placement, kind, rate, model)
    table = Table(rows, f"{len(images)} batches of {config.batch_size} training crops of {dataset.path}")
    print(table)
    if options.csv:
        table.to_csv(options.csv)


if __name__ == "__main__":
    main()
