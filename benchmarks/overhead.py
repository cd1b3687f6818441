"""What dropout costs a training step, and how far the input pipeline is ahead of it.

    python benchmarks/overhead.py [--data data/cells] [--repeats 40]

What is timed is what a training fits: twins of `segdrop.fast` with segdrop's AdamW, loss and metrics. Steps of a U-Net
without dropout and of ones with dropout in every unit of stage3 and stage4 (9 sites) are timed in turn on the same
batch, in an order drawn anew for each round; the cost is the median of the ratios to the plain step of the same round.
The pipeline is timed alone, from the decoded images in memory to finished batches, and is compared with the median
step. Crops of 128 x 128 in batches of 8, the precision that training chooses by itself.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from segdrop import build_unet
from segdrop.data.augment import PRESETS, Sampler, load_augmentation
from segdrop.data.batches import training_batches
from segdrop.data.opening import open_dataset
from segdrop.surgery.fast import fast
from segdrop.training.device import choose_device, precision_policy
from segdrop.training.losses import SegmentationLoss
from segdrop.training.metrics import Dice, IoU
from segdrop.training.optimizer import OneDeviceAdamW

BATCH, CROP = 8, 128


def build(precision: str, gpu: bool, **dropout):
    with precision_policy(precision):
        model = build_unet(encoder_weights=None, seed=0, **dropout)
    twin = fast(model)
    optimizer = OneDeviceAdamW(1e-4, weight_decay=1e-4)
    twin.compile(optimizer, SegmentationLoss(), metrics=[Dice(), IoU()], jit_compile="auto" if gpu else False)
    return twin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="data/cells")
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    device, precision = choose_device("auto")
    gpu = device.startswith("GPU")
    dropout = {"encoder_dropout": 0.2, "blocks": ["stage3", "stage4"]}
    models = {
        "plain": build(precision, gpu),
        "plain again": build(precision, gpu),  # how far two equal networks are apart: the noise
        "spatial": build(precision, gpu, kind="spatial", **dropout),
        "spatial, adjustable": build(precision, gpu, kind="spatial", adjustable=True, **dropout),
        "element": build(precision, gpu, kind="element", **dropout),
        "block 3": build(precision, gpu, kind="block", block_size=3, **dropout),
        "path": build(precision, gpu, kind="path", placement="branch_end", **dropout),
    }
    dataset = open_dataset(options.data)

    def pipeline(preset: str, epochs: int):
        return training_batches(
            dataset,
            range(len(dataset)),
            Sampler(load_augmentation(preset), CROP),
            batch_size=BATCH,
            crop_size=CROP,
            seed=0,
            first_epoch=0,
            epochs=epochs,
        )

    images, masks = next(iter(pipeline("medical", 1)))
    seconds = {name: [] for name in models}
    order = np.random.default_rng(0)
    for repeat in range(-3, options.repeats):
        for name in order.permutation(list(models)):
            start = time.perf_counter()
            models[name].train_on_batch(images, masks)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain"])
    print(f"{device}, precision {precision}; {options.repeats} rounds; median step and ratio to plain [95% interval]")
    for name, times in seconds.items():
        ratios = np.divide(times, seconds["plain"])
        resampled = np.median(order.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        print(f"{name:20} {statistics.median(times):.3f} s  {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]")
    for preset in PRESETS:
        epochs = max(1, 600 // len(dataset))
        start = time.perf_counter()
        count = sum(1 for _ in pipeline(preset, epochs)) * BATCH
        rate = count / (time.perf_counter() - start)
        print(f"pipeline, {preset}: {rate:.0f} images/s, {rate * plain / BATCH:.1f} x what the step takes")


if __name__ == "__main__":
    main()
