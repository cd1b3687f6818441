"""A step of segdrop, or of what it was, whenever standard input says so; see side_by_side.py.

    python benchmarks/step_keras.py training|inference fast|checkpointing|before|library [off]

`fast` is what `segdrop train` fits or `segdrop predict` runs, `checkpointing` what `segdrop train --checkpointing`
fits, `before` what 0.4 did, and `library` plain segmentation_models with Keras's own optimizer. "off" lets TensorFlow
run operations side by side.
"""

import argparse
import contextlib
import importlib

import keras
import numpy as np
import tensorflow as tf
from answering import answer

import segdrop
from segdrop.nets.library import sm
from segdrop.surgery.checkpointing import without_folding
from segdrop.surgery.folding import folded
from segdrop.training.device import choose_device, precision_policy
from segdrop.training.losses import SegmentationLoss
from segdrop.training.metrics import Dice, IoU
from segdrop.training.optimizer import OneDeviceAdamW


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["training", "inference"])
    parser.add_argument("network", choices=["fast", "checkpointing", "before", "library"])
    parser.add_argument("deterministic", nargs="?", default="on")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    choose_device("off", given.deterministic)
    keras.utils.set_random_seed(0)
    with precision_policy("off" if given.precision == "float32" else given.precision):
        if given.network == "library":
            model = sm.Unet("resnet34", encoder_weights=None)
        else:
            model = segdrop.build_unet(encoder_weights=None, encoder_dropout=0.2, spatial=True, seed=0)
    ours, checkpointing = given.network in ("fast", "checkpointing"), given.network == "checkpointing"
    if ours:
        model = segdrop.fast(model, checkpointing=checkpointing) if given.what == "training" else folded(model)
    optimizer = OneDeviceAdamW if ours else keras.optimizers.AdamW
    optimizer = optimizer(1e-4, weight_decay=1e-4)
    compiled = keras.backend.backend() == "jax" or tf.config.list_physical_devices("GPU")
    jit_compile = "auto" if compiled else False  # as `segdrop train` does: on a CPU, TensorFlow is slower with XLA
    model.compile(optimizer, SegmentationLoss(), metrics=[Dice(), IoU()], jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (given.batch, given.size, given.size, 3)).astype("float32")
    masks = rng.integers(0, 2, (given.batch, given.size, given.size, 1)).astype("uint8")

    def training() -> None:
        model.train_on_batch(images, masks)

    def inference() -> None:
        model.predict_on_batch(images)

    backend = importlib.import_module(keras.backend.backend())
    version = f"Keras {keras.__version__}, {backend.__name__} {backend.__version__}"
    with without_folding() if checkpointing else contextlib.nullcontext():
        answer(version, training if given.what == "training" else inference)


if __name__ == "__main__":
    main()
