"""The images of a report."""

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from ..conventions import OVERLAP, TILE, most_entropy
from ..data.batches import evaluation_batches
from ..data.dataset import Dataset
from ..images.resampling import resample
from ..scoring.counts import to_labels
from ..scoring.score import predictions
from ..scoring.uncertainty import entropy, from_moments
from ..show import plots
from ..surgery.sampling import MonteCarlo
from .embedding import jpeg, shrink
from .scores import SINGLE, UNCERTAINTIES


def choose_pictures(
    network, dataset: Dataset, rows: Sequence[Mapping], count: int, samples: int, seed: int, kind: str
) -> dict | None:
    """The best, middle and worst images by Dice with truth, prediction, errors and uncertainty; None where there are
    none. `kind`: of uncertainty, a key of `scores.UNCERTAINTIES`."""
    scored = sorted((row for row in rows if row.get("dice")), key=lambda row: float(row["dice"]), reverse=True)
    chosen = {title: [scored[i] for i in ranks] for title, ranks in _ranks(len(scored), count).items() if ranks}
    if not chosen:
        return None
    position = {name: i for i, name in enumerate(dataset.ids)}
    indices = [position[row["id"]] for members in chosen.values() for row in members]
    shown = dict(views(network, dataset, indices, samples, seed, kind))
    groups = {}
    for title, members in chosen.items():
        groups[title] = []
        for row in members:
            pictures, uncertainty = shown[row["id"]]
            highest = float(uncertainty.max())
            pictures["uncertainty"] = plots.heat(uncertainty, highest or 1)
            uris = {name: jpeg(picture) for name, picture in pictures.items()}
            groups[title].append({"id": row["id"], "dice": float(row["dice"]), "highest": highest, "pictures": uris})
    return {
        "groups": groups,
        "kind": UNCERTAINTIES[kind] + ("" if kind == SINGLE else f" of {samples} Monte Carlo samples"),
        "best_of_several": samples > 0,
        "most": most_entropy(len(dataset.class_names), dataset.multilabel),
        "bar": jpeg(plots.heat(np.tile(np.linspace(0, 1, 256), (12, 1)), 1)),
        "unranked": len(rows) - len(scored),
    }


def _ranks(total: int, count: int) -> dict[str, list[int]]:
    """Which places in the order from best to worst to show: the first, the middle and the last, none of them twice."""
    count = min(count, max(1, total // 3))
    best, worst = range(count), range(max(count, total - count), total)
    middle = (total - count) // 2
    median = [i for i in range(middle, middle + count) if i not in best and i not in worst]
    return {"Best": list(best), "Median": median, "Worst": list(worst)}


def views(
    network, dataset: Dataset, indices: Sequence[int], samples: int, seed: int, kind: str
) -> Iterator[tuple[str, tuple]]:
    """Of each image its id, pictures of image, truth, prediction and errors, and the map of its uncertainty in nats."""
    monte_carlo = MonteCarlo(network.model, samples, seed, multilabel=dataset.multilabel) if kind != SINGLE else None

    def forward(images: np.ndarray) -> np.ndarray:
        probabilities = network.probabilities(images)
        if monte_carlo is None:
            return probabilities
        return np.concatenate([probabilities, monte_carlo.moments(images)], axis=-1)

    for (index,), (truth,), (maps,) in predictions(forward, evaluation_batches(dataset, indices, 0), TILE, OVERLAP):
        if monte_carlo is None:
            probabilities, uncertainty = maps, entropy(maps, dataset.multilabel)
        else:
            channels = maps.shape[-1] // 3
            probabilities, sampled = maps[..., :channels], from_moments(maps[..., channels:], dataset.multilabel)
            uncertainty = getattr(sampled, kind)
        image = plots.visible(dataset.read(index)[0], network.context_slices)
        image = shrink(resample(image, truth.shape))
        pred = to_labels(probabilities, multilabel=dataset.multilabel)
        labels = {"image": np.zeros_like(truth), "truth": truth, "prediction": pred}
        labels = {name: shrink(classes, cv2.INTER_NEAREST) for name, classes in labels.items()}
        multi = {"multilabel": dataset.multilabel}
        pictures = {name: plots.overlay(image, classes, **multi) for name, classes in labels.items()}
        pictures["errors"] = plots.errors(image, labels["truth"], labels["prediction"], **multi)
        yield dataset.ids[index], (pictures, shrink(uncertainty))
