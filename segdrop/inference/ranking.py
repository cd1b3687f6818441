"""Which unlabelled images should be annotated next: those that the network is unsure of, and that differ."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ..config.checks import check_whole
from ..conventions import TILE
from ..data.tiles import in_numbered_tiles, padded
from ..errors import InputError
from ..images.intensity import scale
from ..nets.inspection import dropout_table
from ..nets.sites import encoder_end
from ..scoring.uncertainty import from_moments
from ..show.tables import Table
from .ensemble import Function, combine
from .inputs import find_inputs
from .network import Network, load
from .progress import progress_bar

CANDIDATES = 10  # for each image to choose, the most uncertain ones, among which diversity decides
MUTUAL_INFORMATION, ENTROPY = "mutual_information", "entropy"


@dataclass(frozen=True)
class Ranking:
    """Images in the order in which they should be annotated.

    Attributes:
        images: a row per image: rank, chosen, image (a slice of a volume: "scan.nii.gz#012"), uncertainty (mean over
            the pixels, nats) and distance: to the nearest image that is chosen before it, between the directions of
            the encoder's features, 0 (alike) to 2; empty for the first.
        measure: what the uncertainty is: "mutual_information" of Monte Carlo samples, or the "entropy" of the single
            prediction where the network has no dropout.
        places: of each image in the same order its file and the number of its slice, 0 where it has none.
        failed: what is wrong with each file that could not be read.

    Example:
        >>> ranked = segdrop.rank("runs/first", ["image.png"], count=1)
        >>> list(ranked.images[0]), ranked.failed
        (['rank', 'chosen', 'image', 'uncertainty', 'distance'], ())
    """

    images: Table
    measure: str
    places: tuple[tuple[Path, int], ...]
    failed: tuple[str, ...]


def rank(
    run: str | os.PathLike | Network | keras.Model,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    count: int = 25,
    samples: int = 20,
    seed: int = 0,
) -> Ranking:
    """Rank unlabelled images by how much there is to learn from their annotation.

    The `count` chosen ones come first: of the 10 * `count` most uncertain images, weighted k-means on the encoder's
    features makes `count` clusters, and of each the image nearest to its centre is taken. The others follow by their
    uncertainty. Memory holds one image, and of the others 512 features or so.

    Args:
        run: a run's folder, or what `segdrop.load` takes or gave, but no ONNX file.
        inputs: files, folders (searched with their subfolders) and globs; each slice of a volume is an image.
        count: how many to choose.
        samples: of Monte Carlo dropout.
        seed: of the samples and the clusters.

    Raises:
        FileNotFoundError, InputError: the run or the inputs cannot be used, or there are fewer images than `count`.

    Example:
        >>> ranked = segdrop.rank("runs/first", ["image.png"], count=1)
        >>> ranked.images[0]["image"], ranked.images[0]["rank"], ranked.measure
        ('image.png', 1, 'entropy')

    References:
        Zhdanov 2019, Diverse mini-batch active learning, https://arxiv.org/abs/1901.05954; mutual information:
        Gal, Islam and Ghahramani 2017, Deep Bayesian active learning with image data.
    """
    check_whole(count, "count")
    check_whole(samples, "samples")
    check_whole(seed, "seed", minimum=0)
    network = run if isinstance(run, Network) else load(run)
    function, measure = _sampler(network, samples, seed)
    features_of = _features(network)
    found, failed = [], []
    jobs = find_inputs(inputs, Path(os.devnull, "nowhere"))
    with progress_bar(len(jobs)) as bar:
        for job in jobs:
            try:
                picture = network.open(job.file)
                bounds = network.intensity.bounds(picture)
                for index in range(picture.slices or 1):
                    prepared = network.resample(scale(picture.read(index), *bounds), picture.spacing)
                    name = str(job.file) if picture.slices is None else f"{job.file}#{index:03d}"
                    seen = _uncertainty(function, prepared, measure, network.multilabel), features_of(prepared)
                    found.append((name, (job.file, index), *seen))
            except (InputError, OSError) as error:
                failed.append(str(error))
            bar.finish(1)
    if len(found) < count:
        raise InputError(f"`count` is {count}, but there are {len(found)} image(s) that can be read; choose fewer.")
    names, places, uncertainties, features = zip(*found, strict=True)
    uncertainty, directions = np.array(uncertainties), np.stack(features)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    chosen = choose(uncertainty, directions, count, seed)
    taken = set(chosen)
    order = [*chosen, *(index for index in _most_uncertain_first(uncertainty) if index not in taken)]
    rows = _table(names, uncertainty, directions, order, count)
    return Ranking(rows, measure, tuple(places[index] for index in order), tuple(failed))


def choose(uncertainty: np.ndarray, features: np.ndarray, count: int, seed: int = 0) -> list[int]:
    """Indices of `count` uncertain and different images, the most uncertain first.

    Images with the same features are chosen once, as long as there are others.

    Args:
        uncertainty: float (N,), not negative.
        features: float (N, F).
        count: at most N.

    Example:
        >>> features = np.array([[0.0], [0.0], [0.1], [5.0], [5.1]])
        >>> choose(np.array([0.9, 0.9, 0.8, 0.5, 0.1]), features, count=2)
        [0, 3]
    """
    order = np.array(_most_uncertain_first(uncertainty))
    _, first = np.unique(features[order], axis=0, return_index=True)
    different = order[np.sort(first)]
    candidates = different[: CANDIDATES * count]
    if len(candidates) <= count:
        chosen = candidates.tolist()
        chosen += order[~np.isin(order, different)].tolist()[: count - len(chosen)]
    else:
        weights = uncertainty[candidates] + 1e-12  # all may be 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            clusters = KMeans(count, n_init=10, random_state=seed).fit(features[candidates], sample_weight=weights)
        distances = clusters.transform(features[candidates])
        chosen = []
        for cluster in range(count):
            members = np.flatnonzero(clusters.labels_ == cluster)
            if len(members):
                chosen.append(int(candidates[members[distances[members, cluster].argmin()]]))
        chosen += [i for i in candidates.tolist() if i not in chosen][: count - len(chosen)]
    return sorted(chosen, key=lambda index: (-uncertainty[index], index))


def _most_uncertain_first(uncertainty: np.ndarray) -> list[int]:
    return np.argsort(-uncertainty, kind="stable").tolist()


def _sampler(network: Network, samples: int, seed: int) -> tuple[Function, str]:
    if network.model is None:
        raise InputError(f"{network.path} has no encoder to be asked for features; rank with the run itself.")
    if any(row["rate"] for row in dropout_table(network.model)):
        return combine([network], mc_samples=samples, seed=seed), MUTUAL_INFORMATION
    return combine([network], moments_wanted=True), ENTROPY


def _uncertainty(function: Function, prepared: np.ndarray, measure: str, multilabel: bool) -> float:
    found = from_moments(in_numbered_tiles(function, prepared), multilabel)
    return float((found.mutual_information if measure == MUTUAL_INFORMATION else found.predictive_entropy).mean())


def _features(network: Network):
    """The encoder's last map, averaged over an image of at most a tile's size, float32 (F,)."""
    end = encoder_end(network.model)
    if end is None:
        raise InputError(f"{network.path} has no encoder with the names of segmentation_models' U-Nets.")
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32")(end.output)
    encoder = keras.Model(network.model.input, pooled)

    def features(prepared: np.ndarray) -> np.ndarray:
        factor = min(1.0, TILE / max(prepared.shape[:2]))
        height, width = (padded(max(1, round(side * factor))) for side in prepared.shape[:2])
        small = cv2.resize(prepared, (width, height), interpolation=cv2.INTER_AREA).reshape(1, height, width, -1)
        return np.asarray(encoder.predict_on_batch(small), np.float32)[0]

    return features


def _table(
    names: Sequence[str], uncertainty: np.ndarray, directions: np.ndarray, order: Sequence[int], count: int
) -> Table:
    """A row for each image in `order`, of which the first `count` are chosen."""
    nearest = np.full(len(names), np.inf)
    rows = []
    for place, index in enumerate(order):
        distance = "" if np.isinf(nearest[index]) else round(float(nearest[index]), 4)
        told = {"rank": place + 1, "chosen": place < count, "image": names[index]}
        rows.append({**told, "uncertainty": float(f"{uncertainty[index]:.4g}"), "distance": distance})
        if place < count:
            nearest = np.minimum(nearest, np.linalg.norm(directions - directions[index], axis=1))
    return Table(rows)
