"""Volumes, slice by slice: train on folders of NIfTI files, predict a volume, and find its place in space kept.

    pip install "segdrop[medical]"
    python examples/volumes.py out

draws eight volumes with a ball in each, trains on their slices for about a minute, each slice with its neighbours
(`context_slices`), and predicts a ninth. With volumes of your own: out/data/images and out/data/masks, the same names
in both, and no other change.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import nibabel
import numpy as np

import segdrop

SHAPE, SPACING = (64, 64, 12), (0.7, 0.7, 2.0)  # voxels; mm


def draw_volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in noise, int16, and its mask, uint8."""
    centre, radius = rng.uniform((18, 18, 8), (27, 27, 16)), rng.uniform(7, 10)  # mm
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) * SPACING
    inside = np.linalg.norm(places - centre, axis=-1) < radius
    return (rng.normal(100, 30, SHAPE) + 80 * inside).astype(np.int16), inside.astype(np.uint8)


def write_volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, np.diag([*SPACING, 1])).to_filename(path)


def main(out: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        for part, values in zip(("images", "masks"), draw_volume(rng), strict=True):
            write_volume(out / "data" / part / f"volume{number}.nii.gz", values)
    image, truth = draw_volume(rng)
    write_volume(out / "new" / "volume8.nii.gz", image)

    segdrop.train(
        segdrop.TrainConfig(
            data=str(out / "data"),
            run_dir=str(out / "run"),
            encoder="resnet18",
            encoder_weights="none",
            context_slices=1,
            crop_size=64,
            batch_size=8,
            epochs=3,
            steps_per_epoch=20,
            recalibrate_batchnorm=True,  # so short a training leaves BatchNorm's statistics behind
        )
    )
    done = segdrop.predict(out / "run", out / "new", out / "masks")
    found = nibabel.load(done.out / done.files[0]["mask"])
    mask = np.asarray(found.dataobj)
    print(f"Dice of the new volume: {2 * (mask & truth).sum() / (mask.sum() + truth.sum()):.2f}")
    print(f"Spacing of its mask: {' x '.join(f'{side:.1f}' for side in found.header.get_zooms())} mm")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/volumes.py OUT")
    main(Path(sys.argv[1]))
