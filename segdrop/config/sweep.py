"""What a sweep is told to do."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from ..errors import InputError
from ..typed import fit
from .checks import at_least, check_fields, check_whole, within
from .train import TrainConfig

Margin = Annotated[float, within("in 0..0.5", lambda value: 0 <= value <= 0.5)]
MARGIN = 0.01  # of Dice: less than two trainings of one network, or two annotators, usually differ by
# What sweeps of versions without these fields were.
_BEFORE = {"reference_seeds": 1}


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What a sweep compares, and on how many trainings; see `segdrop.sweep`.

    Example:
        >>> from segdrop.config.arms import arms_of, name_of
        >>> train = segdrop.TrainConfig(data="data/cells", epochs=20)
        >>> config = segdrop.SweepConfig(train, {"encoder_dropout": [0.1, 0.3], "dropout_kind": ["spatial", "block"]})
        >>> [name_of(arm) for arm in arms_of(config)]
        ['none', 'spatial 0.1', 'block 0.1', 'spatial 0.3', 'block 0.3']
    """

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """What all trainings have in common; its seed is that of the folds."""
    grid: dict | list | None = None
    """Values of fields of the training: {"encoder_dropout": [0.1, 0.3], "lr": [0.001]}; or a list of such mappings."""
    folds: Annotated[int, at_least(2)] = 5
    """Folds of the cross-validation."""
    repeats: Annotated[int, at_least(1)] = 1
    """Times that the images are divided into folds anew; a finished sweep can be asked for more."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, with every one of which each fold of each arm is trained; a finished sweep can be asked for more."""
    reference: str = ""
    """Name of the arm that all others are compared with, as the answer writes it; by default an arm with dropout is
    compared with the same without, and all else with training as it is."""
    reference_seeds: Annotated[int, at_least(1)] | Literal["auto"] = "auto"
    """Seeds with which an arm that others are compared with is trained, as it is in every comparison; auto: the square
    root of their number, times that of the seeds."""
    margin: Margin = MARGIN
    """Differences of Dice up to it do not matter; one that surely lies within it is told as none."""
    contrasts: Literal["none", "kinds", "trend"] = "none"
    """Compare beforehand, instead of single arms: kinds: the mean over the rates of each kind of dropout with none;
    trend: Dice against the rate, for each kind."""
    stop_when_told: bool = False
    """Look at the scores fold by fold, and train no further what is told by then; costs a little at the last fold."""
    search: Annotated[int, at_least(0)] = 0
    """Number of arms to propose from the grid's values and ranges (Optuna's TPE), instead of all combinations."""
    prune: bool = False
    """In a search, drop an arm whose first fold is below the median of the other proposals', once there are four."""
    hold_out: bool = True
    """Keep test images out of the folds: those of the given split, else some that are cut off."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self):
        check_fields(self)
        seeds = self.seeds if isinstance(self.seeds, (tuple, list)) else (self.seeds,)
        object.__setattr__(self, "seeds", tuple(check_whole(seed, "seeds", minimum=0) for seed in seeds))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"`seeds` must be one or more different numbers, got seeds={self.seeds!r}.")
        if self.prune and not self.search:
            raise InputError("`prune` belongs to a search; a grid trains every fold of every arm.")
        for name, given in (("stop_when_told", self.stop_when_told), ("contrasts", self.contrasts != "none")):
            if self.search and given:
                raise InputError(f"`{name}` is for a grid, whose arms are known beforehand, and not for a search.")
        if self.stop_when_told and self.contrasts != "none":
            raise InputError("`contrasts` are compared when all is trained; leave out stop_when_told, or them.")
        if self.train.gpus != "one":
            raise InputError("`gpus` is not for a sweep, whose workers each take a GPU.")
        for name in ("resume", "run_dir", "from_sweep"):
            if getattr(self.train, name):
                raise InputError(f"`{name}` is not for a sweep, which goes on by itself in its own folder.")

    def to_json(self) -> dict:
        """A JSON-ready dict that `from_json` turns back into an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping) -> "SweepConfig":
        """The configuration that a sweep has stored; what its version had no option for is as it was then."""
        return fit(cls, cls.upgraded(stored), "The stored configuration")

    @staticmethod
    def upgraded(stored: Mapping) -> dict:
        """What a version has stored, with what it had no option for as it was then."""
        return {**_BEFORE, **stored, "train": TrainConfig.upgraded(stored["train"])}
