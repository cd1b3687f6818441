"""The sample set: drawn microscopy-like cells, so that the first training needs no download.

`python -m segdrop.cells data/cells` makes it. No threshold separates its cells: their contrast, its sign, the light
and the background change within and between images, many touch, and debris is as bright as they are.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from .files import write_csv

SPLIT_SIZES = {"train": 64, "val": 16, "test": 16}
SIZE = 128


def draw_cells(rng: np.random.Generator, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture.

    Args:
        rng: all randomness comes from here.
        size: height and width in pixels.

    Returns:
        image: uint8 (size, size); mask: uint8 (size, size), 1 where there is a cell.
    """
    light = _light(rng, size)
    image = light.copy()
    mask = np.zeros((size, size), np.uint8)
    sign = rng.choice([-1, 1])  # bright cells or dark ones, as with fluorescence or with phase contrast
    contrast = rng.uniform(0.12, 0.3)
    scale = rng.uniform(0.06, 0.13) * size
    centres = _clustered_centres(rng, size, scale)
    for centre in centres:
        outline = _outline(rng, centre, scale * rng.uniform(0.7, 1.3))
        body = cv2.fillPoly(np.zeros((size, size), np.uint8), [outline], 1)
        mask |= body
        image += sign * contrast * rng.uniform(0.7, 1.3) * _stain(rng, body, scale)
    image += _debris(rng, size, sign * contrast)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.3))
    image += rng.normal(0, rng.uniform(0.01, 0.05), image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask


def write_sample_set(folder: Path, seed: int = 0) -> None:
    """Write the whole set: images/, masks/, splits.csv and classes.json; equal seeds give equal pixels."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in SPLIT_SIZES.items():
        for number in range(count):
            name = f"{split}_{number:03d}"
            image, mask = draw_cells(np.random.default_rng((seed, len(rows))))
            for part, picture in (("images", image), ("masks", mask)):
                cv2.imwrite(str(folder / part / f"{name}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
            rows.append({"id": name, "split": split})
    write_csv(folder / "splits.csv", rows)
    (folder / "classes.json").write_text(json.dumps({"0": "background", "1": "cell"}) + "\n", encoding="utf-8")


def _light(rng, size: int) -> np.ndarray:
    """An uneven background: a gradient, a lamp that is off centre, and large soft blotches."""
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, 2 * np.pi)
    gradient = rng.uniform(0.1, 0.35) * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    cx, cy = rng.uniform(0.2, 0.8, 2)
    lamp = rng.uniform(0, 0.3) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.15)
    blotches = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), size / 10)
    return rng.uniform(0.35, 0.6) + gradient + lamp + 0.06 * blotches / blotches.std()


def _clustered_centres(rng, size: int, scale: float) -> np.ndarray:
    """Centres of cells, some of them beside another so that they touch."""
    centres = list(rng.uniform(0, size, (rng.integers(4, 9), 2)))
    for _ in range(rng.integers(2, 7)):
        angle = rng.uniform(0, 2 * np.pi)
        beside = centres[rng.integers(len(centres))]
        centres.append(beside + 1.7 * scale * np.array([np.cos(angle), np.sin(angle)]))
    return np.array(centres)


def _outline(rng, centre: np.ndarray, radius: float) -> np.ndarray:
    """A closed curve: an ellipse with low harmonics added to its radius; int32 (64, 2), x before y."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    r = 1 + sum(rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    stretch, turn = rng.uniform(0.75, 1.3), rng.uniform(0, np.pi)
    points = radius * r * np.stack([stretch * np.cos(angle), np.sin(angle) / stretch])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.round(centre + (rotation @ points).T).astype(np.int32)


def _stain(rng, body: np.ndarray, scale: float) -> np.ndarray:
    """How strongly each pixel of a cell is stained: granular, and hollow to a varying degree."""
    depth = cv2.distanceTransform(body, cv2.DIST_L2, 5)
    hollow = rng.uniform(0, 1.0) * np.clip(depth / (0.5 * scale), 0, 1)
    grains = cv2.GaussianBlur(rng.normal(0, 1, body.shape), (0, 0), 1.5)
    return body * (1 - hollow + 0.25 * grains / grains.std())


def _debris(rng, size: int, contrast: float) -> np.ndarray:
    """Specks and fibres of the cells' own contrast."""
    picture = np.zeros((size, size))
    for _ in range(rng.integers(3, 12)):
        x, y = (int(v) for v in rng.integers(0, size, 2))
        cv2.circle(picture, (x, y), int(rng.integers(1, 3)), contrast * rng.uniform(0.8, 1.5), -1)
    for _ in range(rng.integers(0, 4)):
        ends = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(picture, ends[0], ends[1], contrast * rng.uniform(0.5, 1.2), 1)
    return picture


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m segdrop.cells FOLDER")
    write_sample_set(Path(sys.argv[1]))
