"""Your own Keras project: the network is segdrop's; data, loss and fit are yours.

    python examples/own_project.py

trains a U-Net with dropout in its encoder on drawn cells for about a minute, from random weights, and tells how
sure it is of pictures that it has not seen. `encoder_weights="imagenet"`, the default, starts from ImageNet instead.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import segdrop
from segdrop.cells import draw_cells

TRAINED, HELD_OUT, SAMPLES = 100, 10, 10


def main() -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    grey, masks = map(np.array, zip(*(draw_cells(rng, 64) for _ in range(TRAINED + HELD_OUT)), strict=True))
    images = np.repeat(grey[..., None], 3, axis=-1).astype("float32")  # RGB in 0..255: the network scales them itself

    model = segdrop.build_unet("resnet18", encoder_weights=None, encoder_dropout=0.2, spatial=True)
    print(segdrop.dropout_table(model))
    model.compile(keras.optimizers.AdamW(1e-3), "binary_crossentropy")
    model.fit(images[:TRAINED], masks[:TRAINED, ..., None], batch_size=10, epochs=6, verbose=2)
    # In a training this short BatchNorm's running statistics have not followed the weights.
    segdrop.recalibrate_batchnorm(model, images[:TRAINED].reshape(10, -1, *images.shape[1:]))

    twin = segdrop.monte_carlo(model)  # the same weights; dropout on, BatchNorm at rest
    samples = np.stack([twin.predict(images[TRAINED:], verbose=0)[..., 0] for _ in range(SAMPLES)])
    wrong = (samples.mean(axis=0) > 0.5) != masks[TRAINED:]
    spread = samples.std(axis=0)
    print(f"{wrong.mean():.1%} of the pixels are wrong. Standard deviation of {SAMPLES} samples, mean over pixels:")
    print(f"{spread[wrong].mean():.3f} where the prediction is wrong, {spread[~wrong].mean():.3f} where it is right.")


if __name__ == "__main__":
    main()
