"""Images per second in training and inference, by image size and precision.

    python benchmarks/throughput.py [--sizes 128 256 512] [--precisions off bfloat16] [--batch-pixels 131072]

A batch holds 131,072 pixels (8 images of 128 x 128) unless told otherwise. Each figure is the median of `--repeats`
timed calls after a warm-up, the precisions of one size taken in turn.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from segdrop import build_unet
from segdrop.training.device import choose_device, precision_policy
from segdrop.training.losses import SegmentationLoss


def build(precision: str, jit_compile):
    with precision_policy(precision):
        model = build_unet(encoder_weights=None, encoder_dropout=0.2, spatial=True, seed=0)
    model.compile(keras.optimizers.AdamW(), SegmentationLoss(), jit_compile=jit_compile)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--precisions", nargs="+", default=["off", "bfloat16"])
    parser.add_argument("--batch-pixels", type=int, default=8 * 128 * 128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device, _ = choose_device("off")
    print(f"{device}; Keras {keras.__version__}; resnet34, spatial dropout 0.2 at 8 sites")
    models = {p: build(p, "auto" if device.startswith("GPU") else False) for p in options.precisions}
    rng = np.random.default_rng(0)
    print("| size | batch | precision | training, images/s | inference, images/s |\n|---|---|---|---|---|")
    for size in options.sizes:
        batch = max(1, options.batch_pixels // size**2)
        images = rng.uniform(0, 255, (batch, size, size, 3)).astype("float32")
        masks = rng.integers(0, 2, (batch, size, size, 1)).astype("uint8")
        seconds = {p: ([], []) for p in models}
        for repeat in range(-2, options.repeats):  # the first two trace and warm up
            for precision, model in models.items():
                start = time.perf_counter()
                model.train_on_batch(images, masks)
                middle = time.perf_counter()
                model.predict_on_batch(images)
                if repeat >= 0:
                    seconds[precision][0].append(middle - start)
                    seconds[precision][1].append(time.perf_counter() - middle)
        for precision, times in seconds.items():
            train, infer = (batch / statistics.median(t) for t in times)
            print(f"| {size} | {batch} | {precision} | {train:.1f} | {infer:.1f} |", flush=True)


if __name__ == "__main__":
    main()
