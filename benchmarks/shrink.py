"""Copy a data set with its images and masks made smaller, for sweeps that fit a CPU.

python benchmarks/shrink.py /data/kvasir_seg data/kvasir_128 --side 128
python benchmarks/shrink.py /data/kvasir_seg data/kvasir_128_third --side 128 --every 3
"""

import argparse
import csv
import shutil
from pathlib import Path

import cv2


def shrink(source: Path, target: Path, side: int, every: int = 1) -> int:
    """Shrink each `every`th pair so that its longer side has at most `side` pixels; return how many there are."""
    for part, interpolation in (("images", cv2.INTER_AREA), ("masks", cv2.INTER_NEAREST)):
        (target / part).mkdir(parents=True)
        files = sorted((source / part).iterdir())[::every]
        for file in files:
            picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            scale = min(1.0, side / max(picture.shape[:2]))
            size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
            cv2.imwrite(str(target / part / file.name), cv2.resize(picture, size, interpolation=interpolation))
    kept = {file.stem for file in files}
    for table in source.glob("*.csv"):
        with table.open(newline="") as rows, (target / table.name).open("w", newline="") as left:
            reader = csv.DictReader(rows)
            writer = csv.DictWriter(left, reader.fieldnames)
            writer.writeheader()
            writer.writerows(row for row in reader if row["id"] in kept)
    for names in source.glob("classes.json"):
        shutil.copy(names, target)
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--every", type=int, default=1, help="take each so-and-so-manyth pair (default: all)")
    options = parser.parse_args()
    print(f"{shrink(options.source, options.target, options.side, options.every)} pairs in {options.target}")
