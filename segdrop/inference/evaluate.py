"""Scores of a trained run on a split of a data set."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..config.checks import check_tile, check_whole, is_finite
from ..conventions import OVERLAP, TILE
from ..data.batches import evaluation_batches
from ..data.dataset import Dataset
from ..data.opening import open_configured
from ..errors import InputError
from ..folders.run import RunRecord, open_run, recorded_split, store_scores, stored_scores
from ..scoring.score import score_images
from ..scoring.surfaces import TOLERANCE
from .ensemble import combine, load_alike
from .network import Network


def evaluate(
    run: str | os.PathLike,
    data: str | os.PathLike | None = None,
    split: str = "test",
    *,
    mc_samples: int = 0,
    ensemble: Sequence[str | os.PathLike] = (),
    seed: int = 0,
    tolerance: float = TOLERANCE,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> dict:
    """Score a run's best model on whole images; store the scores in its metrics.json and per_image.csv.

    Args:
        run: the run's folder.
        data: a data set; by default the run's own, with the split that the run made.
        split: `"train"`, `"val"`, `"test"`, or `"all"`. Another data set than the run's own must give this split
            in its splits.csv, or be scored as a whole with `"all"`.
        mc_samples: samples of Monte Carlo dropout, for uncertainty; 0 for none.
        ensemble: further runs: uncertainty is then that of them and `run` together, of one prediction each, or of
            `mc_samples` each. The headline stays that of `run` alone.
        seed: of the samples, and of the intervals' resampling.
        tolerance: of the surface Dice, in mm where every image of the split has a spacing, else in pixels.
        tile: images with a longer side, in pixels, are predicted in tiles of this side, a multiple of 32.
        overlap: of the tiles in pixels, a multiple of 32.

    Returns:
        What metrics.json now has of it; see `score_images`. With one output channel, `tuned` are the scores at the
        threshold that is best on the run's validation split, which is scored first where it has not been; it is None
        where the run's own data set is no longer there.

    Raises:
        FileNotFoundError, InputError: the run or the data cannot be used, the split is empty, or the model has no
            dropout to sample from.

    Example:
        >>> scores = segdrop.evaluate("runs/first", split="test")
        >>> scores["images"], round(scores["dice"], 2), round(scores["classes"]["cell"]["recall"], 1)
        (16, 0.36, 1.0)
    """
    run = Path(run)
    mc_samples, seed = check_whole(mc_samples, "mc_samples", minimum=0), check_whole(seed, "seed", minimum=0)
    check_tile(tile, overlap)
    if not is_finite(tolerance) or tolerance < 0:
        raise InputError(f"`tolerance` must be a number of at least 0, got tolerance={tolerance!r}.")
    record = open_run(run)
    ensemble = [ensemble] if isinstance(ensemble, (str, os.PathLike)) else ensemble
    networks = load_alike([run, *ensemble])
    sampled, sampler = {}, None
    if mc_samples or ensemble:
        sampled = {"samples": mc_samples, "networks": len(networks), "seed": seed}
        sampler = combine(networks, moments_wanted=True, mc_samples=mc_samples, seed=seed)
    own = data is None or Path(data).resolve() == Path(record.config.data).resolve()
    scorer = _Scorer(run, record, networks[0], {"seed": seed, "tolerance": tolerance, "tile": tile, "overlap": overlap})
    dataset = scorer.open_data(record.config.data if data is None else data)
    indices = recorded_split(run, dataset, split) if own else _given_split(dataset, split)
    if not len(indices):
        raise InputError(f"{dataset.path} has no image in the split {split!r}.")
    tune, threshold = own and split == "val", None
    if record.classes == 1 and not tune:
        threshold = scorer.tuned_threshold(dataset if own else None)
    key = split if own else f"{dataset.path}/{split}"
    return scorer.score(dataset, indices, key, own, sampled, sampler=sampler, tune=tune, threshold=threshold)


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """Scores a run's network on images, and stores the scores in the run's folder.

    Attributes:
        options: of `score_images`, the same for whatever is scored.
    """

    run: Path
    record: RunRecord
    network: Network
    options: Mapping

    def open_data(self, data: str | os.PathLike) -> Dataset:
        return open_configured(self.record.config, data, outputs=self.record.classes)

    def score(self, dataset: Dataset, indices, key: str, own: bool, sampled: Mapping, **options) -> dict:
        """The scores on some images, stored under `key`.

        Args:
            own: whether the data set is the run's own.
            sampled: what the uncertainty is of, told with it.
            options: of `score_images`.
        """
        config = self.record.config
        batches = evaluation_batches(dataset, indices, config.batch_size * config.crop_size**2)
        forward = self.network.probabilities
        temperature = self.network.temperature
        result, rows = score_images(
            forward, batches, dataset.class_names, temperature=temperature, **self.options, **options
        )
        result = {"data": str(dataset.path), "data_sha256": dataset.digest, **result}
        if "uncertainty" in result:
            result["uncertainty"] = {**sampled, **result["uncertainty"]}
        if self.record.classes == 1:
            result.setdefault("tuned", None)
        if own and dataset.digest != self.record.data_sha256:
            result["warning"] = "the data set has changed since the training"
        store_scores(self.run, key, result, rows)
        return result

    def tuned_threshold(self, own_data: Dataset | None) -> float | None:
        """The best threshold on the run's validation split, scored first where it has not been; None where it cannot.

        Args:
            own_data: the run's data set where it is open, else it is opened here.
        """
        validated = stored_scores(self.run).get("val", {})
        if "tuned_threshold" in validated:
            return validated["tuned_threshold"]
        try:
            dataset = own_data or self.open_data(self.record.config.data)
            validation = recorded_split(self.run, dataset, "val")
        except (FileNotFoundError, InputError):
            if own_data is not None:
                raise
            return None  # a model may be scored where the data it was trained on is not
        if not len(validation):
            return None
        return self.score(dataset, validation, "val", True, {}, tune=True)["tuned_threshold"]


def _given_split(dataset: Dataset, split: str) -> np.ndarray:
    if split == "all":
        return np.arange(len(dataset))
    if dataset.splits is None:
        raise InputError(f"{dataset.path} gives no split; score all of it with split='all' (--split all).")
    return np.flatnonzero(np.array(dataset.splits) == split)
