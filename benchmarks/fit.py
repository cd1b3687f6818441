"""Images a second of Keras's `fit` and `predict_on_batch`, for a GPU under any of Keras's backends.

    KERAS_BACKEND=jax python benchmarks/fit.py --precision bfloat16 --dropout 0.2

One batch is given again and again, from the memory of the computer, so that neither files nor augmentation are
measured. The first `fit` compiles.
"""

import argparse
import time

import keras
import numpy as np
import tensorflow as tf

import segdrop
from segdrop.training.device import precision_policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--precision", choices=["off", "bfloat16", "float16"], default="off")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    with precision_policy(given.precision):
        model = segdrop.build_unet(given.encoder, classes=2, encoder_weights=None, encoder_dropout=given.dropout)
    optimizer = keras.optimizers.Adam(1e-4)
    if given.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(), jit_compile=True)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (given.batch, given.size, given.size, 3)).astype("float32")
    masks = rng.integers(0, 2, (given.batch, given.size, given.size, 1)).astype("int32")

    def fit(steps: int) -> float:
        started = time.monotonic()
        model.fit(tf.data.Dataset.from_tensors((images, masks)).repeat(steps), verbose=0)
        return steps * given.batch / (time.monotonic() - started)

    def predict(steps: int) -> float:
        started = time.monotonic()
        for _ in range(steps):
            model.predict_on_batch(images)
        return steps * given.batch / (time.monotonic() - started)

    fit(3)
    print("fit:", *(f"{fit(given.steps):.0f}" for _ in range(3)), "images a second")
    predict(1)
    print("predict:", *(f"{predict(20):.0f}" for _ in range(3)), "images a second")


if __name__ == "__main__":
    main()
