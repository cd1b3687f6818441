"""A prediction by ONNX Runtime of the U-Net as an ONNX file; see side_by_side.py."""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import onnxruntime
from answering import answer

import segdrop


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = segdrop.build_unet(encoder_weights=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        signature = [keras.InputSpec(shape=model.input_shape, dtype="float32", name="images")]
        model.export(path, format="onnx", verbose=False, input_signature=signature)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).uniform(0, 255, (given.batch, given.size, given.size, 3)).astype("float32")
    answer(f"ONNX Runtime {onnxruntime.__version__}", lambda: session.run(None, {"images": images}))


if __name__ == "__main__":
    main()
