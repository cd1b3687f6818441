"""What building a U-Net with dropout takes against the library's plain one: time, and memory at the peak.

    python benchmarks/build.py [--repeats 15]

Both are built in turn, ResNet34 from random weights, spatial dropout at the 8 default sites; the ratio is the median of
the ratios of neighbours. Memory is the peak of a process of its own for each, less that of one that only imports.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from segdrop import build_unet
from segdrop.nets.unet import sm

WAYS = {
    "import": lambda: None,
    "plain": lambda: sm.Unet("resnet34", encoder_weights=None),
    "dropout": lambda: build_unet("resnet34", encoder_weights=None, encoder_dropout=0.2, spatial=True),
}


def peak_megabytes(way: str) -> float:
    """Peak resident memory of a process that builds one model."""
    done = subprocess.run([sys.executable, __file__, "--peak-of", way], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def print_own_peak(way: str) -> None:
    import keras

    keras.layers.Dense(1)(keras.Input((1,)))  # TensorFlow allocates on first use
    model = WAYS[way]()
    del model
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peak-of", choices=WAYS)
    options = parser.parse_args()
    if options.peak_of:
        return print_own_peak(options.peak_of)
    ratios, seconds = [], {"plain": [], "dropout": []}
    for repeat in range(-1, options.repeats):
        for way in seconds:
            gc.collect()
            start = time.perf_counter()
            WAYS[way]()
            if repeat >= 0:
                seconds[way].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["dropout"], strict=True)]
    for way, times in seconds.items():
        print(f"{way:8} {statistics.median(times):.2f} s")
    print(f"ratio    {statistics.median(ratios):.2f} (quartiles {statistics.quantiles(ratios, n=4)[::2]})")
    weights = 4 * WAYS["plain"]().count_params() / 2**20
    peaks = {way: statistics.median(peak_megabytes(way) for _ in range(3)) for way in WAYS}
    for way in ("plain", "dropout"):
        extra = peaks[way] - peaks["import"]
        print(f"{way:8} {extra:.0f} MiB above the imports, {extra / weights:.2f} x the weights ({weights:.0f} MiB)")


if __name__ == "__main__":
    main()
