"""segdrop beside segmentation_models_pytorch and plain segmentation_models: seconds and memory of a step.

    python benchmarks/side_by_side.py --pytorch PYTHON [--what training inference] [--sizes 128 256]
        [--precisions float32 bfloat16] [--rounds 21] [--jax] [--out FILE.json]

PYTHON is that of an environment of its own, made with

    python -m venv peers && peers/bin/pip install torch torchvision segmentation-models-pytorch

Each network is a process of its own; they take one step after the other, in an order that is drawn anew for each round,
while all others wait. The network is a resnet34 U-Net with random weights, segdrop's with spatial dropout 0.2 at its 8
sites, on batches of 131,072 pixels (8 images of 128 x 128). What is told is the median step, and the median of the
ratios to the first network's step of the same round with its 95% interval (bootstrap); and what the convolutions of a
step come to in multiplications and additions a second. Run it on a machine that does nothing else.

Where there is a GPU all of them run on it. For one:

    python benchmarks/side_by_side.py --pytorch PYTHON --sizes 256 512 --batch-pixels 1048576
        --precisions float32 float16 bfloat16 --jax
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from answering import Process

HERE = Path(__file__).parent
# Multiplications of the convolutions of a resnet34 U-Net, for each pixel of the image; a gradient takes two as many.
MULTIPLICATIONS = 1.96e9 / 128**2
# Which program runs each network, and what it is told.
NETWORKS = {
    "training": {
        "PyTorch": ("step_pytorch.py", "training"),
        "segdrop": ("step_keras.py", "training", "fast"),
        "segdrop, `--deterministic off`": ("step_keras.py", "training", "fast", "off"),
        "segdrop, `--checkpointing`": ("step_keras.py", "training", "checkpointing"),
        "segdrop, JAX": ("step_keras.py", "training", "fast"),
        "segdrop 0.4": ("step_keras.py", "training", "before"),
        "segmentation_models": ("step_keras.py", "training", "library", "off"),
    },
    "inference": {
        "PyTorch": ("step_pytorch.py", "inference"),
        "segdrop": ("step_keras.py", "inference", "fast"),
        "segdrop, `--deterministic off`": ("step_keras.py", "inference", "fast", "off"),
        "segdrop, `--engine onnxruntime`": ("step_engine.py", "onnxruntime"),
        "segdrop, `--engine openvino`": ("step_engine.py", "openvino"),
        "segdrop, JAX": ("step_keras.py", "inference", "fast"),
        "segdrop 0.4": ("step_keras.py", "inference", "before"),
    },
}


def begun(python: str, backend: str, program: str, *words: str, size: int, batch: int, precision: str) -> Process:
    """The process of a network."""
    numbers = [f"--size={size}", f"--batch={batch}", f"--precision={precision}"]
    # JAX would take most of a GPU's memory.
    environment = {"KERAS_BACKEND": backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Process(python, str(HERE / program), *words, *numbers, **environment)


def measured(what: str, size: int, precision: str, given) -> list[dict]:
    """A row for each network."""
    batch, rng = max(1, given.batch_pixels // size**2), np.random.default_rng(0)
    pythons = {"step_pytorch.py": given.pytorch}
    networks = {}
    for name, words in NETWORKS[what].items():
        if (name == "PyTorch" and not given.pytorch) or (name == "segdrop, JAX" and not given.jax):
            continue
        if words[0] != "step_engine.py" or precision == "float32":
            python, backend = pythons.get(words[0], sys.executable), "jax" if "JAX" in name else "tensorflow"
            networks[name] = begun(python, backend, *words, size=size, batch=batch, precision=precision)
    seconds = {name: [] for name in networks}
    for number in range(-3, given.rounds):  # the first ones trace and warm up
        for name in rng.permutation(list(networks)):
            time.sleep(0.05)  # threads of the one before are let go to sleep
            step = networks[name].ask("step")
            if number >= 0:
                seconds[name].append(step)
    rows, reference = [], next(iter(networks))
    for name, network in networks.items():
        ratios = np.divide(seconds[reference], seconds[name])
        low, high = np.percentile(np.median(rng.choice(ratios, (4000, len(ratios))), axis=1), [2.5, 97.5])
        told = {"what": what, "size": size, "batch": batch, "precision": precision, "network": name}
        row = {"seconds": statistics.median(seconds[name]), "speed": np.median(ratios), "low": low, "high": high}
        row["tflops"] = 2 * MULTIPLICATIONS * batch * size**2 * (3 if what == "training" else 1) / row["seconds"] / 1e12
        rows.append({**told, **row, "memory_gb": network.ask("memory"), "version": network.hello})
        network.end()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pytorch", help="Python of the environment that has segmentation_models_pytorch")
    parser.add_argument("--what", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--jax", action="store_true", help="segdrop's networks under KERAS_BACKEND=jax, too")
    parser.add_argument("--batch-pixels", type=int, default=8 * 128 * 128)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    print(
        "| | size | batch | precision | network | step | speed, first = 1 | TFLOP/s | memory |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for what in given.what:
        for size in given.sizes:
            for precision in given.precisions:
                for row in measured(what, size, precision, given):
                    rows.append(row)
                    print(
                        "| {what} | {size} | {batch} | {precision} | {network} ({version}) | {seconds:.3f} s | "
                        "{speed:.2f} [{low:.2f}, {high:.2f}] | {tflops:.2f} | {memory_gb:.2f} GB |".format(**row),
                        flush=True,
                    )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
