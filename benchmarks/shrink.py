"""Copy a data set with its images and masks made smaller, for sweeps that fit a CPU.

python benchmarks/shrink.py /data/kvasir_seg data/kvasir_128 --side 128
"""

import argparse
import shutil
from pathlib import Path

import cv2


def shrink(source: Path, target: Path, side: int) -> int:
    """Shrink every pair so that its longer side has at most `side` pixels; return how many there are."""
    for part, interpolation in (("images", cv2.INTER_AREA), ("masks", cv2.INTER_NEAREST)):
        (target / part).mkdir(parents=True)
        files = sorted((source / part).iterdir())
        for file in files:
            picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            scale = min(1.0, side / max(picture.shape[:2]))
            size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
            cv2.imwrite(str(target / part / file.name), cv2.resize(picture, size, interpolation=interpolation))
    for table in (*source.glob("*.csv"), *source.glob("classes.json")):
        shutil.copy(table, target)
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--side", type=int, required=True)
    options = parser.parse_args()
    print(f"{shrink(options.source, options.target, options.side)} pairs in {options.target}")
