"""An open sweep: started with everything checked, or joined if nothing differs."""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from ..config.arms import arm_config, arms_of, config_of, name_of, subgrids_of
from ..config.design import contrasts_of, references_of
from ..config.sweep import SweepConfig
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..data.splits import cross_validation, split_dataset
from ..errors import InputError
from ..files import write_json
from ..folders.run import SWEEP, is_sweep
from ..folders.sweep import ADVICE, CHOSEN, FOLDS, SweepRecord, lock_answer, open_sweep, read_folds, write_folds
from ..version import __version__
from .storage import DATABASE, GRACE, HEARTBEAT, file_url, open_storage, reading, without_password
from .trials import Trials, distributions

if TYPE_CHECKING:  # it imports TensorFlow
    from ..training.planning import Plan

_FILE = "a file in the sweep's folder"
# What may differ between machines: where the data lie, the memory for them, and the processes that augment them.
_OF_THE_MACHINE = ("data", "cache_mb", "augment_workers")


# What two arms may differ in that have one network.
_OF_THE_TRAINING = {
    **dict.fromkeys(("lr", "encoder_lr", "augment_strength"), 1.0),
    **dict.fromkeys(("weight_decay", "label_smoothing", "copy_paste"), 0.0),
    **dict.fromkeys(("ema", "mixup", "cutmix")),
    "augment": "medical",
}


@dataclasses.dataclass
class State:
    """An open sweep.

    Attributes:
        folder: its folder.
        record: what sweep.json says.
        trials: its trainings.
        storage: address of the database, None for the file in the folder.
    """

    folder: Path
    record: SweepRecord
    trials: Trials
    storage: str | None

    @property
    def config(self) -> SweepConfig:
        """What is compared, with the data's place on this machine."""
        return self.trials.config

    def precision_of(self, train: TrainConfig) -> str:
        """All machines compute alike: as the one that started the sweep, unless the arm says how."""
        return self.record.mixed_precision if train.mixed_precision == "auto" else train.mixed_precision

    def arm_config(self, changes: Mapping) -> TrainConfig:
        return config_of(self.config.train, changes)

    def change_margin(self, margin: float) -> None:
        """Set what does not matter; it has no part in the trainings."""
        self.trials.config = dataclasses.replace(self.config, margin=margin)

    def change_training(self, **fields) -> None:
        """Set what may differ between machines (`_OF_THE_MACHINE`)."""
        train = dataclasses.replace(self.config.train, **fields)
        self.trials.config = dataclasses.replace(self.config, train=train)


def open_or_start(folder: Path, config: SweepConfig | None, storage: str | None, **heartbeat: int) -> State:
    """Open the folder's sweep if it is the configuration's, or start it; all its trainings are enqueued then."""
    if not is_sweep(folder):
        if config is None:
            raise InputError(f"{folder} is not the folder of a sweep, and no configuration is given to start one.")
        _start(folder, config, storage)
    elif config is not None:
        dataset = _check_same_data(folder, config)
        with lock_answer(folder):
            _grow(folder, config, dataset)
    state = open_state(folder, storage, **heartbeat)
    if config is not None:
        state.change_training(**{name: getattr(config.train, name) for name in _OF_THE_MACHINE})
        state.change_margin(config.margin)
    return state


def open_state(folder: Path, storage: str | None, *, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> State:
    """Open the sweep of a folder."""
    record = open_sweep(folder)
    if (storage is None) != (record.storage == _FILE):
        where = "without `storage`" if storage else f"with `storage` {record.storage}"
        raise InputError(f"{folder} was started {where}; give the same.")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    if storage is None and not (folder / DATABASE).is_file():  # which would be made
        raise InputError(f"{folder} has no {DATABASE}; {ADVICE}.")
    with reading(str(folder / DATABASE) if storage is None else record.storage):
        database = open_storage(storage or file_url(folder), heartbeat, grace)
        try:
            study = optuna.load_study(study_name=record.study, storage=database)
        except KeyError:
            raise InputError(
                f"{record.storage} does not know the sweep of {folder} ({record.study}); give the storage that it "
                "was started with, or start anew in another folder."
            ) from None
    return State(folder, record, Trials(study, record.config), storage)


def _start(folder: Path, config: SweepConfig, storage: str | None) -> None:
    """Check everything, make the folder and the study, and enqueue every training that is planned."""
    from ..training.building import find_weights

    # What a start that was interrupted leaves is nothing of anybody's.
    if folder.exists() and any(not path.name.startswith((".", DATABASE)) for path in folder.iterdir()):
        raise FileExistsError(f"`folder` exists and is not a sweep's: {folder}; choose another.")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # what fails is told in the answer
    if storage is not None:
        open_storage(storage).engine.dispose()  # one that is unreachable is found before the data are read
    checked = check(config)
    config, dataset, folds = checked.config, checked.dataset, checked.folds
    train = config.train
    record = SweepRecord(
        segdrop=__version__,
        config=config,
        study=f"{folder.absolute().name}-{os.urandom(4).hex()}",
        storage=_FILE if storage is None else without_password(storage),
        **_identity(dataset),
        images=sum(len(part) for part in folds[0]),
        groups=len({dataset.groups[i] for part in folds[0] for i in part}) if dataset.grouped else None,
        class_names=tuple(dataset.class_names),
        mixed_precision=checked.precision,
        plan=checked.plan.to_json(),
        random_weights=train.encoder_weights == "auto" and find_weights(train) == "random",
    )
    folder.mkdir(parents=True, exist_ok=True)
    database = open_storage(storage or file_url(folder))
    try:
        study = optuna.create_study(study_name=record.study, storage=database, direction="maximize")
        trials = Trials(study, config)
        trials.enqueue(trials.missing([]))
        if _place(record, folder):
            write_folds(folder, dataset, folds)
        else:
            optuna.delete_study(study_name=record.study, storage=database)
            _grow(folder, config, _check_same_data(folder, config))
    finally:
        database.engine.dispose()


def _place(record: SweepRecord, folder: Path) -> bool:
    """Write sweep.json, once its study is there; False where another machine that started at once was quicker."""
    temporary = folder / f".{record.study}.json"
    write_json(temporary, record.to_json())
    try:
        os.link(temporary, folder / SWEEP)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if (folder / SWEEP).exists():
            return False
        os.replace(temporary, folder / SWEEP)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@dataclasses.dataclass(frozen=True)
class Checked:
    """A sweep that can be started.

    Attributes:
        config: its configuration, in which nothing is left to the plan.
        plan: what was chosen from the data for all arms.
        arms: their changes.
        dataset: the data set.
        folds: for each repeat the validation images of each fold.
        precision: off, float16 or bfloat16.
    """

    config: SweepConfig
    plan: "Plan"
    arms: list[dict]
    dataset: Dataset
    folds: list[list[np.ndarray]]
    precision: str


def check(config: SweepConfig) -> Checked:
    """Find everything that is wrong before the first training, and make the plan, the same for all arms and folds.

    Raises:
        FileNotFoundError, InputError: the data or the configuration cannot be used.
    """
    from ..data.opening import open_configured
    from ..data.values import constant_images, faint_images, values_of
    from ..training.device import choose_device, this_machine
    from ..training.planning import make_plan

    arms = arms_of(config)  # what is wrong with them is found before the data are read
    references = references_of(arms, config.reference)
    contrasts_of(config.contrasts, arms, references)
    if config.stop_when_told and references == list(range(len(arms))):
        names = "; ".join(map(name_of, arms))
        raise InputError(f"`stop_when_told` needs arms of which one is compared with another, got {names}.")
    _check_search(config)
    dataset = open_configured(config.train)
    values = values_of(dataset, np.arange(len(dataset)))
    faint = faint_images(values, f"{len(dataset)} images", dataset.intensity.rule)
    for warning in (*faint, *constant_images(dataset.constant(range(len(dataset))))):
        warnings.warn(warning, stacklevel=2)
    folds = _divide(dataset, config)
    _, precision = choose_device(config.train.mixed_precision, config.train.deterministic)
    held_out, *others = folds[0]
    plan = make_plan(config.train, dataset, np.concatenate(others), held_out, this_machine(precision))
    config = dataclasses.replace(config, train=dataclasses.replace(plan.config, intensity=dataset.intensity.rule))
    arms = arms_of(config)
    _check_arms([config_of(config.train, arm) for arm in arms], dataset)
    return Checked(config, plan, arms, dataset, folds, precision)


def _divide(dataset: Dataset, config: SweepConfig) -> list[list[np.ndarray]]:
    """For each repeat the validation images of each fold."""
    train = config.train
    inside = np.arange(len(dataset))
    if config.hold_out:
        inside = np.setdiff1d(inside, split_dataset(dataset, train.seed, train.val_fraction)["test"])
    return [
        cross_validation(dataset, inside, config.folds, (train.seed, repeat) if repeat else train.seed)
        for repeat in range(config.repeats)
    ]


def _identity(dataset: Dataset) -> dict:
    """What must be the same for a sweep to go on: the files' contents, and what is grouped and split how."""
    grouping = repr((dataset.groups, dataset.splits, dataset.strata)).encode()
    return {"data_sha256": dataset.digest, "grouping_sha256": hashlib.sha256(grouping).hexdigest()}


def _check_search(config: SweepConfig) -> None:
    """Find what is wrong with a search's space before its first training."""
    if not config.search:
        return
    spaces = subgrids_of(config.grid)
    if len(spaces) != 1:
        raise InputError("`search` needs one mapping of fields to values or ranges as `grid`.")
    distributions(spaces[0])
    for name, values in spaces[0].items():
        for value in [values["low"], values["high"]] if isinstance(values, Mapping) else values:
            # Alone a value may lack what it goes with; that it is impossible as such is told by its own name.
            try:
                arm_config(config.train, {name: value})
            except InputError as error:
                if str(error).split("): ", 1)[-1].startswith(f"`{name}` must"):
                    raise


def _check_arms(configs: Sequence[TrainConfig], dataset: Dataset) -> None:
    """Augment an image with each pipeline and build a network of each structure, so that a file that is missing, an
    unknown block and the like are found before the first training."""
    from ..data.augment import Sampler, load_augmentation
    from ..training.building import build_model, find_weights, start_from

    colours = configs[0].has_colours  # of all arms alike
    for augment, strength, size in {(one.augment, one.augment_strength, one.crop_size) for one in configs}:
        Sampler(load_augmentation(augment, colours=colours, strength=strength), size).check(*dataset.read(0))
    built = set()
    for config in configs:
        rates = config.encoder_dropout
        structure = dataclasses.replace(
            config,
            encoder_dropout=rates if isinstance(rates, dict) else float(np.max(rates) > 0) / 2,
            **_OF_THE_TRAINING,
        )
        if repr(structure) not in built:
            built.add(repr(structure))
            weights = None if config.encoder_weights in ("auto", "none") else find_weights(config)
            start_from(build_model(config, dataset.class_names, weights, "off"), config)


def check_same(folder: Path, config: SweepConfig) -> None:
    """Raise InputError, naming the difference, unless the sweep of `folder` is that of `config`, or shorter."""
    kept = open_sweep(folder).config
    config = dataclasses.replace(config, train=config.train.continuing(kept.train))
    if config.reference_seeds == "auto":
        config = dataclasses.replace(config, reference_seeds=kept.reference_seeds)
    stored, given = (json.loads(json.dumps(sweep.to_json())) for sweep in (kept, config))
    differences = {
        name: (given["train"][name], stored["train"].get(name))
        for name in given["train"]
        if given["train"][name] != stored["train"].get(name) and name not in _OF_THE_MACHINE
    } | {
        name: (given[name], stored.get(name))
        for name in given
        if given[name] != stored.get(name) and name not in ("train", "repeats", "seeds", "margin")
    }
    if given["repeats"] < stored["repeats"]:
        differences["repeats"] = given["repeats"], stored["repeats"]
    if given["seeds"][: len(stored["seeds"])] != stored["seeds"]:
        differences["seeds"] = given["seeds"], stored["seeds"]
    for name, (ours, theirs) in differences.items():
        raise InputError(f"`{name}` is {ours!r}, but {folder} was started with {theirs!r}; choose another folder.")


def _check_same_data(folder: Path, config: SweepConfig) -> Dataset:
    """Raise InputError unless the sweep of `folder` is that of `config`, and the data set its own; returns that."""
    from ..data.opening import open_configured

    check_same(folder, config)
    record = open_sweep(folder)
    dataset = open_configured(config.train.continuing(record.config.train))
    identity = _identity(dataset)
    for key, what in (("data_sha256", "other images or masks"), ("grouping_sha256", "other groups, splits or strata")):
        if identity[key] != getattr(record, key):
            raise InputError(
                f"{config.train.data} has {what} than {folder} was started with ({record.images} images in its "
                "folds); choose another folder."
            )
    return dataset


def _grow(folder: Path, config: SweepConfig, dataset: Dataset) -> None:
    """Take over more repeats and seeds than the folder has, and write the folds where its start was cut off before."""
    record = open_sweep(folder)
    stored = record.config
    if not (folder / FOLDS).is_file():
        write_folds(folder, dataset, _divide(dataset, stored))
    if config.repeats > stored.repeats or len(config.seeds) > len(stored.seeds):
        folds, _, _ = read_folds(folder, dataset)  # what is trained already keeps its folds, whatever divided them
        write_folds(folder, dataset, folds + _divide(dataset, config)[len(folds) :])
        grown = dataclasses.replace(stored, repeats=config.repeats, seeds=config.seeds)
        write_json(folder / SWEEP, dataclasses.replace(record, config=grown).to_json())
        (folder / CHOSEN).unlink(missing_ok=True)
