"""Do images that `segdrop rank` chooses teach more than images drawn at random?

For each seed a first network is trained on COUNT training images; COUNT more are chosen from the rest, by `rank` and
at random; and a network is trained anew on each 2 * COUNT, with the same options and seed. What differs in test Dice is
the answer. Every training is a run of its own that an interrupted call goes on with.

    python benchmarks/ranking.py --data DATA --out OUT [--steps 150] [--seeds 5] [--count 25] [TRAIN OPTIONS]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

import segdrop
from segdrop.data.opening import open_dataset
from segdrop.data.splits import split_dataset
from segdrop.files import write_csv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with images/ and masks/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=25)
    given, options = parser.parse_known_args()
    rows = [compare(given, options, seed) for seed in range(given.seeds)]
    differences = np.array([row["ranked"] - row["random"] for row in rows])
    half = stats.t.ppf(0.975, len(rows) - 1) * differences.std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.nan
    mean = differences.mean()
    result = {"rows": rows, "difference": mean, "interval": [mean - half, mean + half], "options": options}
    (given.out / "ranking.json").write_text(json.dumps({**vars(given), **result}, indent=1, default=str))
    for row in rows:
        print("seed {seed}: first {first:.4f}, ranked {ranked:.4f}, random {random:.4f}".format(**row))
    print(f"ranked less random: {mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}] (95%, paired t)")


def compare(given: argparse.Namespace, options: list[str], seed: int) -> dict:
    """Test Dice of the three networks of a seed."""
    dataset = open_dataset(given.data)
    split = {name: [dataset.ids[i] for i in indices] for name, indices in split_dataset(dataset, 0, 0.15).items()}
    home, rng = given.out / f"seed{seed}", np.random.default_rng(seed)
    pool = rng.permutation(split["train"]).tolist()
    first, rest = pool[: given.count], pool[given.count :]
    scores = {"seed": seed, "first": train(home / "first", given, options, seed, dataset, split, first)}
    files = {Path(file).stem: str(file) for file in (given.data / "images").iterdir()}
    ranking = home / "ranking.json"
    if not ranking.is_file():
        ranked = segdrop.rank(home / "first" / "run", [files[name] for name in rest], count=given.count, seed=seed)
        ranking.write_text(json.dumps([Path(row["image"]).stem for row in ranked.images if row["chosen"]]))
    for name, more in {"ranked": json.loads(ranking.read_text()), "random": rest[: given.count]}.items():
        scores[name] = train(home / name, given, options, seed, dataset, split, [*first, *more])
    return scores


def train(home: Path, given, options, seed: int, dataset, split, images: list[str]) -> float:
    """Test Dice of a network trained on some of the training images, the others left out."""
    home.mkdir(parents=True, exist_ok=True)
    run = home / "run"
    if not (run / "metrics.json").is_file():
        rows = []
        for name in [*images, *split["val"], *split["test"]]:
            part = "train" if name in images else "val" if name in split["val"] else "test"
            image, mask = (next((given.data / kind).glob(f"{name}.*")).absolute() for kind in ("images", "masks"))
            rows.append({"id": name, "image": image, "mask": mask, "split": part})
        write_csv(home / "data.csv", rows)
        words = ["--data", home / "data.csv", "--run-dir", run, "--steps", given.steps, "--seed", seed, *options]
        words += ["--resume"] * (run / "state.npz").is_file()
        subprocess.run([sys.executable, "-m", "segdrop.cli", "train", *map(str, words)], check=True)
    return json.loads((run / "metrics.json").read_text())["test"]["dice"]


if __name__ == "__main__":
    main()
