"""A prediction of the U-Net by another program, as `segdrop predict --engine` has it run; see side_by_side.py.

python benchmarks/step_engine.py onnxruntime|openvino
"""

import argparse
import importlib

import keras
import numpy as np
from answering import answer

import segdrop
from segdrop.inference.engines import function_of_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["onnxruntime", "openvino"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = segdrop.build_unet(encoder_weights=None)
    # Without statistics its maps would grow from layer to layer, and rounding with them.
    segdrop.recalibrate_batchnorm(model, [rng.uniform(0, 255, (8, 128, 128, 3)).astype("float32")])
    function = function_of_model(model, given.engine)
    images = rng.uniform(0, 255, (given.batch, given.size, given.size, 3)).astype("float32")
    version = importlib.import_module(given.engine).__version__
    answer(f"{given.engine} {version}", lambda: function(images))


if __name__ == "__main__":
    main()
