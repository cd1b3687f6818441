"""One prediction from several: networks, views of an image, and Monte Carlo samples."""

import os
from collections.abc import Callable, Sequence

import keras
import numpy as np

from ..config.predict import Engine
from ..errors import InputError
from ..folders.run import is_sweep
from ..folders.sweep import fold_runs
from ..scoring.uncertainty import moments
from ..surgery.sampling import MonteCarlo
from .network import Network, load

# What is done to an image before the network and undone after it: quarter turns, and whether it is mirrored first.
VIEWS = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, flip) for turns in range(4) for flip in (False, True)),
}
Function = Callable[[np.ndarray, int], np.ndarray]


def load_alike(
    runs: Sequence[str | os.PathLike | Network | keras.Model], precision: str = "stored", engine: Engine = "auto"
) -> list[Network]:
    """Load networks whose predictions can be averaged; of a finished sweep those of its chosen arm's folds.

    Raises:
        FileNotFoundError, InputError: one cannot be loaded, is there twice, or has other classes or another
            pre-processing.
    """
    for name, given, default in (("precision", precision, "stored"), ("engine", engine, "auto")):
        if given != default and any(isinstance(run, Network) for run in runs):
            raise InputError(f"`{name}` {given} must be given to segdrop.load for a network that is loaded already.")
    networks, known = [], set()
    for place, run in enumerate(runs):
        if isinstance(run, Network):
            networks.append(run)
        elif isinstance(run, keras.Model):
            networks.append(load(run, precision=precision, engine=engine))
        else:
            if place and not os.path.exists(run or ""):
                raise FileNotFoundError(f"`ensemble` names a run that does not exist: {run!r}.")
            members = fold_runs(run) if is_sweep(run) else [run]
            for member in members:
                if (where := os.path.realpath(member)) in known:
                    raise InputError(f"`ensemble` has {member} twice; name each run once.")
                known.add(where)
            networks += [load(member, precision=precision, engine=engine) for member in members]
    first = networks[0]
    for other in networks[1:]:
        for what in (
            "class_names",
            "channels",
            "multilabel",
            "intensity",
            "spacing",
            "scale",
            "slice_axis",
            "image_channels",
            "context_slices",
        ):
            if getattr(other, what) != getattr(first, what):
                raise InputError(
                    f"`ensemble` {other.path} has {what} {getattr(other, what)}, {first.path} has "
                    f"{getattr(first, what)}; only networks trained alike can be averaged."
                )
    return networks


def combine(
    networks: Sequence[Network],
    *,
    tta: str = "none",
    moments_wanted: bool = False,
    mc_samples: int = 0,
    mc_rate: float | None = None,
    seed: int = 0,
) -> Function:
    """One function for the mean over networks, views and samples.

    Args:
        tta: one of VIEWS.
        moments_wanted: give the means of `scoring.uncertainty.moments` instead of those of the probabilities.
        mc_samples, mc_rate, seed: Monte Carlo samples of each network in each view, whose moments are given; 0: none.

    Returns:
        maps float32 (N, H, W, input_channels), 0..255, sides multiples of 32, and a key that chooses the samples, to
        float32 (N, H, W, C), or (N, H, W, 2C + 1) with moments.

    Raises:
        InputError: samples are asked of a network that has no dropout.
    """
    members: list[Function] = []
    for network in networks:
        if mc_samples:
            if network.model is None:
                raise InputError(f"{network.path} has no dropout any more; draw `mc_samples` from the run itself.")
            try:
                members.append(MonteCarlo(network.model, mc_samples, seed, mc_rate, network.multilabel).moments)
            except InputError as error:
                raise InputError(f"`mc_samples` cannot be drawn from {network.path}: {error}") from error
        elif moments_wanted:
            members.append(
                lambda images, key, network=network: moments(network.probabilities(images), network.multilabel)
            )
        else:
            members.append(lambda images, key, network=network: network.probabilities(images))
    views = VIEWS[tta]

    def function(images: np.ndarray, key: int = 0) -> np.ndarray:
        total = 0.0
        for turns, flip in views:
            seen = np.ascontiguousarray(np.rot90(images[:, :, ::-1] if flip else images, turns, (1, 2)))
            for member in members:
                result = np.rot90(member(seen, key), -turns, (1, 2))
                total = total + (result[:, :, ::-1] if flip else result)
        return total / np.float32(len(views) * len(members))

    return function
