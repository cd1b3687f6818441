"""Which images are for training, validation and test; and the folds of a cross-validation."""

import hashlib
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from ..config.checks import check_whole
from ..errors import InputError
from . import remembered
from .dataset import Dataset

_DIVISIONS = 100  # tried for folds that have every class


def split_dataset(dataset: Dataset, seed: int, fraction: float = 0.15) -> dict[str, np.ndarray]:
    """Indices of the "train", "val" and "test" images; groups are never divided.

    A given split is kept. Without a validation split one is cut from train; without a test split the validation
    split is the held-out test and another validation split is cut from train; without any split both are cut.

    Args:
        seed: of the cut.
        fraction: share of the images to cut for each missing split; the cut is one fold of
            `StratifiedGroupKFold(round(1 / fraction))`, stratified by `dataset.strata` where there are any.

    Raises:
        InputError: a split would be empty, or there are too few groups to cut it.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> split = split_dataset(open_dataset("data/cells"), seed=0)
        >>> {name: len(indices) for name, indices in split.items()}
        {'train': 64, 'val': 16, 'test': 16}
    """
    everything = np.arange(len(dataset))
    if dataset.splits is None:
        folds = _folds(dataset, everything, seed, fraction, needed=2)
        split = {"test": folds[0], "val": folds[1]}
        split["train"] = np.setdiff1d(everything, np.concatenate(folds[:2]))
    else:
        given = np.array(dataset.splits)
        split = {name: everything[given == name] for name in ("train", "val", "test")}
        if not len(split["test"]):
            split["test"], split["val"] = split["val"], split["test"]
        if not len(split["val"]) and len(split["train"]):
            split["val"] = _folds(dataset, split["train"], seed, fraction, needed=1)[0]
            split["train"] = np.setdiff1d(split["train"], split["val"])
    for name in ("train", "val"):
        if not len(split[name]):
            raise InputError(f"{dataset.path}: the {name} split is empty; give splits.csv images for it.")
    return split


def part_of(dataset: Dataset, indices: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """`fraction` of the images `indices`, sorted: whole groups in a random order, in each stratum.

    A smaller part lies within a larger one of the same seed. A group counts to the stratum of its first image; every
    stratum keeps at least one group.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> dataset = open_dataset("data/cells")
        >>> quarter, half = (part_of(dataset, np.arange(64), share, seed=0) for share in (0.25, 0.5))
        >>> len(quarter), len(half), set(quarter) < set(half)
        (16, 32, True)
    """
    if fraction == 1:
        return indices
    members = defaultdict(list)
    for index in sorted(indices.tolist()):
        members[dataset.groups[index]].append(index)
    strata = defaultdict(list)
    for group, images in members.items():
        strata[dataset.strata[images[0]] if dataset.strata else ""].append(group)
    rng = np.random.default_rng(seed)
    kept = []
    for _, groups in sorted(strata.items()):
        order = rng.permutation(len(groups))
        sizes = np.array([len(members[groups[i]]) for i in order])
        before = np.cumsum(sizes) - sizes
        wanted = round(fraction * sizes.sum(), 6)  # 0.07 * 100 is a little more than 7
        kept += [index for i in order[before < wanted] for index in members[groups[i]]]
    return np.array(sorted(kept))


def cross_validation(
    dataset: Dataset, indices: np.ndarray, folds: int, seed: int | tuple[int, ...]
) -> list[np.ndarray]:
    """The validation images of each of `folds` folds of the images `indices`; groups are never divided.

    Stratified by `dataset.strata` and by the foreground: the classes that an image has, and within these by thirds of
    the share of its pixels that they take. Of several divisions the first is taken whose folds have all classes.

    Raises:
        InputError: there are fewer groups than folds, or a fold has no image of a class, to train or to validate with.

    Example:
        >>> from segdrop.data.opening import open_dataset
        >>> folds = cross_validation(open_dataset("data/cells"), np.arange(96), folds=4, seed=0)
        >>> len(folds), sorted(np.concatenate(folds).tolist()) == list(range(96))
        (4, True)
    """
    check_whole(folds, "folds", minimum=2)
    groups = len({dataset.groups[index] for index in indices})
    if groups < folds:
        what = "group(s)" if dataset.grouped else "different image(s)"
        raise InputError(f"{dataset.path} has {groups} {what} to divide into folds={folds}; use fewer folds.")
    shares = np.array([_class_shares(dataset, index) for index in indices])
    present = shares > 0
    kinds = [tuple(row) for row in present.tolist()]
    column = [dataset.strata[index] for index in indices] if dataset.strata else [""] * len(indices)
    total = shares.sum(axis=1)
    # As objects: an array of strings would cut off what is added to them.
    labels = np.array([repr(pair) for pair in zip(column, kinds, strict=True)], object)
    for label in np.unique(labels):
        inside = labels == label
        if inside.sum() >= 3 * folds:  # fewer could not be spread over the folds
            third = np.searchsorted(np.quantile(total[inside], [1 / 3, 2 / 3]), total[inside])
            labels[inside] = [f"{label} {n}" for n in third]
    if max(Counter(labels.tolist()).values()) < folds:
        labels = np.zeros(len(indices), int)
    place = {int(index): i for i, index in enumerate(indices)}
    homes = [len({dataset.groups[index] for index in indices[having]}) for having in present.T]
    problem = ""
    for attempt in range(_DIVISIONS if min(homes) >= folds else 1):
        parts = _group_folds(indices, np.array(dataset.groups)[indices], labels, folds, np.append(attempt, seed))
        inside = [np.isin(np.arange(len(indices)), [place[int(index)] for index in part]) for part in parts]
        problem = _lacking(dataset, present, inside)
        if not problem:
            return parts
    raise InputError(problem)


def _lacking(dataset: Dataset, present: np.ndarray, folds: Sequence[np.ndarray]) -> str:
    """What is wrong where a fold has no image of a class, to train or to validate with; "" where nothing is.

    Args:
        present: bool (N, K), whether an image has each foreground class.
        folds: bool (N,), whether an image is in each fold.
    """
    for number, fold in enumerate(folds):
        for held_out, use in ((fold, "validate"), (~fold, "train")):
            missing = np.flatnonzero(~present[held_out].any(axis=0))
            if missing.size:
                return (
                    f"{dataset.path}: fold {number + 1} of {len(folds)} has no image with the class "
                    f"{dataset.class_names[missing[0] + 1]!r} to {use} with ({present[:, missing[0]].sum()} image(s) "
                    "have it); use fewer folds or add such images."
                )
    return ""


def _class_shares(dataset: Dataset, index: int) -> np.ndarray:
    """The share of an image's pixels that each foreground class takes."""
    mask = dataset.read(int(index))[1]
    return np.bincount(mask.ravel(), minlength=256)[1 : len(dataset.class_names)] / mask.size


def _folds(dataset, indices, seed, fraction, needed) -> list[np.ndarray]:
    groups = np.array(dataset.groups)[indices]
    count = min(round(1 / fraction), len(set(groups)))
    if count <= needed:
        raise InputError(
            f"{dataset.path}: the validation split would be empty: {len(set(groups))} group(s) or different image(s) "
            f"cannot be divided into train and {needed} held-out part(s); add data or give splits.csv."
        )
    strata = np.array(dataset.strata)[indices] if dataset.strata else np.zeros(len(indices), int)
    if max(Counter(strata.tolist()).values()) < count:
        raise InputError(f"{dataset.path}: no stratum has the {count} images for {count} folds; stratify coarser.")
    return _group_folds(indices, groups, strata, count, seed)


def _group_folds(indices, groups, strata, count: int, seed) -> list[np.ndarray]:
    names, inverse = np.unique(groups, return_inverse=True)
    # The splitter takes groups in the order of their labels; random labels shuffle them, alike in every version of
    # scikit-learn, whose own shuffle had no effect in 1.7.
    labels = np.random.default_rng(seed).permutation(len(names))[inverse]
    # Of a hundred thousand images each cut takes 12 seconds: the next start takes it from this one.
    about = ("folds", hashlib.sha256(labels.tobytes() + repr(strata.tolist()).encode()).hexdigest(), count)
    homes, began = remembered.recall(about).get("homes"), time.monotonic()
    if homes is None or homes.shape != labels.shape:
        homes = _homes(labels, strata, count)
        if time.monotonic() - began > remembered.WORTH:
            remembered.remember(about, {"homes": homes})
    return [indices[homes == fold] for fold in range(count)]


def _homes(labels, strata, count: int) -> np.ndarray:
    """The fold of each image, int64 (images,)."""
    from sklearn.model_selection import StratifiedGroupKFold

    homes = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A stratum smaller than the number of folds is spread as far as it goes, which is what is wanted.
        warnings.filterwarnings("ignore", message="The least populated class")
        for fold, (_, held_out) in enumerate(StratifiedGroupKFold(count).split(labels, strata, labels)):
            homes[held_out] = fold
    return homes
