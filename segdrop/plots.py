"""Pictures of images with their masks, and of a training's history."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .dataset import IGNORED


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Colour the foreground classes of `labels`, uint8 (H, W), over `image`, (H, W, 3), 0..255; uint8 (H, W, 3)."""
    palette = np.array(colormaps["tab10"].colors) * 255
    foreground = (labels > 0) & (labels != IGNORED)
    picture = np.asarray(image, np.float32).copy()
    colours = palette[(labels[foreground].astype(int) - 1) % len(palette)]
    picture[foreground] = (1 - opacity) * picture[foreground] + opacity * colours
    return picture.round().clip(0, 255).astype(np.uint8)


def panel(image: np.ndarray, truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Image, truth and prediction side by side, without the ignored rows and columns at the end; uint8 (H, 3W, 3)."""
    inside = truth != IGNORED
    if inside.any():
        height, width = (int(np.flatnonzero(inside.any(axis=axis))[-1]) + 1 for axis in (1, 0))
    else:
        height, width = truth.shape
    image, truth, pred = image[:height, :width], truth[:height, :width], pred[:height, :width]
    return np.concatenate([overlay(image, np.zeros_like(truth)), overlay(image, truth), overlay(image, pred)], axis=1)


def save_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Plot loss and Dice of training and validation against the epoch."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "dice"), strict=True):
        axes.plot(epochs, [row[name] for row in history], label="training")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend()
    figure.savefig(path, dpi=120)


def save_examples(path: Path, panels: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Plot panels (`panel`) under each other."""
    heights = [3 * p.shape[0] / p.shape[1] for p in panels]
    figure = Figure(figsize=(9, 3 * sum(heights) + 0.4 * len(panels)), layout="constrained")
    for axes, picture, title in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels, titles, strict=True
    ):
        axes.imshow(picture)
        axes.set_title(f"{title}: image, truth, prediction", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=110)
