"""Sweeps: does dropout help on these data? Start or join one, report it, and tell its price in advance."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from ..config.arms import DROPOUT_FIELDS, config_of, key_of, name_of, reference_of, subgrids_of
from ..config.checks import check_type
from ..config.design import references_of, seeds_of
from ..config.sweep import SweepConfig
from ..errors import InputError
from ..files import write_json
from ..folders.sweep import TEST, check_data, fold_runs, lock_answer, read_chosen, read_folds, read_test
from .answer_files import write_answer
from .answer_page import PAGE, write_answer_page
from .answers import Answer
from .collecting import results
from .comparing import answer
from .outcome import choose, remove_models
from .state import State, check, open_or_start, open_state


def sweep(
    folder: str | os.PathLike,
    config: SweepConfig | None = None,
    *,
    storage: str | None = None,
    workers: int | None = None,
) -> Answer:
    """Train every arm on every fold, or go on with it, and answer whether dropout helps on these data.

    The same call on another machine, with the same shared `folder` and a `storage` that both reach, takes part in the
    same sweep; so does it after an interruption. It returns when no training is left to do and none runs elsewhere.

    Args:
        folder: the sweep's folder: answer.md, folds.csv, and the trainings' folders.
        config: what is compared; by default what the folder was started with. A folder goes on with more repeats or
            seeds, and with nothing else that differs.
        storage: address of a database (postgresql://user@host/database); by default a file in the folder, which
            serves the workers of one machine.
        workers: processes on this machine; by default one for each GPU, else one. They share the cores.

    Returns:
        the answer; also written to answer.md, answer.html, answer.csv and dice.png in the folder.

    Raises:
        FileNotFoundError, FileExistsError, InputError: the data, the configuration, the storage or the folder cannot be
            used, or the folder belongs to a sweep of other data or another configuration, which the message names.

    Example:
        >>> train = segdrop.TrainConfig(encoder="resnet18", encoder_weights="none", mixed_precision="off",
        ...     crop_size=64, epochs=2, train_fraction=0.25)
        >>> config = segdrop.SweepConfig(train, {"encoder_dropout": [0.2], "dropout_kind": ["spatial"]}, folds=2)
        >>> segdrop.sweep("sweeps/mine", config).headline
        4 of 4 trainings were done before.
        'Dropout makes no difference of Dice beyond 0.01 on these data, with spatial dropout of 0.2: ...'
    """
    from .workers import Worker, count_workers, run_workers

    if config is not None:
        check_type(config, "config", SweepConfig)
    workers = count_workers(workers)
    state = open_or_start(Path(folder), config, storage)
    if workers == 1:
        Worker(state).work()
    else:
        run_workers(state, workers)
    return _conclude(state)


def sweep_report(
    folder: str | os.PathLike,
    *,
    storage: str | None = None,
    test: bool = False,
    data: str | None = None,
    margin: float | None = None,
    reference: str | None = None,
) -> Answer:
    """The answer of a sweep from the trainings that are finished by now; written to its folder anew.

    Args:
        folder: the sweep's folder.
        storage: the database's address, where the sweep has one.
        test: score the chosen arm on the sweep's test images: the mean of its folds' models. This is done once, for a
            finished sweep; later reports show the stored scores.
        data: for `test`, the data set where it lies elsewhere than when the sweep was started.
        margin: differences of Dice up to it do not matter, 0..0.5; by default what the sweep was started with.
        reference: the name of the arm that the others are compared with; by default the sweep's own. One that is
            chosen for its scores flatters itself.

    Raises:
        FileNotFoundError, InputError: there is no such sweep, or `test` is asked of one that is not finished.

    Example:
        >>> answer = segdrop.sweep_report("sweeps/mine")
        >>> [(one.arm.name, one.state, round(one.means["dice"], 2)) for one in answer.arms]
        [('none', 'complete', 0.28), ('spatial 0.2', 'complete', 0.28)]
        >>> answer.arms[1].comparison.verdict
        'no difference beyond the margin'
    """
    state = open_state(Path(folder), storage)
    if data is not None:
        state.change_training(data=data)
    if margin is not None:
        state.change_margin(margin)
    if test:
        _score_test(state)
    return _conclude(state, reference)


@dataclasses.dataclass(frozen=True)
class Price:
    """What a sweep would take.

    Attributes:
        arms: their names; of a search the ones that are known.
        trainings: their number; of a search at most.
        seconds: of all one after the other on this machine.
        at_most: whether patience may end trainings earlier.
        plan: what all trainings have in common, chosen from the data.
        compared: the number of arms that are compared with another; of a search at most.
        reference_seeds: how many seeds the arm has that most are compared with.
    """

    arms: tuple[str, ...]
    trainings: int
    seconds: float
    at_most: bool
    plan: dict
    compared: int = 0
    reference_seeds: int = 1


def estimate(config: SweepConfig) -> Price:
    """Tell what a sweep would take, from a few timed steps; checks all that `sweep` checks and writes nothing.

    Raises:
        FileNotFoundError, InputError: as `sweep`.

    Example:
        >>> train = segdrop.TrainConfig(data="data/cells", encoder_weights="none", epochs=20)
        >>> price = segdrop.estimate(segdrop.SweepConfig(train, {"encoder_dropout": [0.1, 0.3]}, folds=5))
        >>> price.arms, price.trainings
        (('none', 'element 0.1', 'element 0.3'), 15)
    """
    from ..training.folds import time_training

    check_type(config, "config", SweepConfig)
    checked = check(config)
    config, arms, dataset, precision = checked.config, checked.arms, checked.dataset, checked.precision
    held_out, *others = checked.folds[0]
    split = {"train": np.concatenate(others), "val": held_out, "test": np.empty(0, int)}
    each = config.folds * config.repeats * len(config.seeds)
    seconds: dict[str, float] = {}
    total, trainings = 0.0, 0
    all_seeds = seeds_of(config, arms)
    for arm, seeds in zip(arms, all_seeds, strict=True):
        train = config_of(config.train, arm)
        # What dropout costs a step is not worth a measurement of its own.
        effort = key_of(reference_of(arm))
        if effort not in seconds:
            seconds[effort] = time_training(train, dataset, split, precision)
        total += config.folds * config.repeats * len(seeds) * seconds[effort]
        trainings += config.folds * config.repeats * len(seeds)
    # A proposal that varies more than dropout has a reference of its own, unless another has the same.
    pairs = any(name not in DROPOUT_FIELDS for subgrid in subgrids_of(config.grid) for name in subgrid)
    proposed = config.search * (2 if pairs else 1)
    total += proposed * each * seconds[key_of({})]
    return Price(
        tuple(map(name_of, arms)),
        trainings + proposed * each,
        total,
        at_most=config.train.patience < config.train.epochs or config.stop_when_told,
        plan=checked.plan.to_json(),
        compared=sum(i != reference for i, reference in enumerate(references_of(arms, config.reference))) + proposed,
        reference_seeds=max(map(len, all_seeds)),
    )


def _conclude(state: State, reference: str | None = None) -> Answer:
    with lock_answer(state.folder):  # all machines come here at the same time
        if choose(state):
            remove_models(state)
        sweep_answer = answer(results(state, reference))
        write_answer(state.folder, sweep_answer)
        write_answer_page(state.folder / PAGE, sweep_answer)
        return sweep_answer


def _score_test(state: State) -> None:
    """Score the mean of the chosen arm's fold models on the test images, once."""
    from ..data.batches import evaluation_batches
    from ..data.opening import open_configured
    from ..inference.ensemble import combine, load_alike
    from ..scoring.score import score_images

    if not choose(state):
        raise InputError(f"`test` is for the arm that a finished sweep has chosen; {state.folder} is not finished.")
    chosen = read_chosen(state.folder)
    if scored := read_test(state.folder):
        if scored["arm"] != chosen["arm"]:
            raise InputError(
                f"`test` was asked when {scored['arm']!r} was the chosen arm of {state.folder}, by now it is "
                f"{chosen['arm']!r}; test images are scored once."
            )
        return
    runs, train = fold_runs(state.folder), state.arm_config(chosen["changes"])
    dataset = open_configured(train)
    check_data(state.record, dataset, state.folder)
    _, members, _ = read_folds(state.folder, dataset)
    if not len(members):
        raise InputError(f"{state.folder} has no test images: all are in its folds.")
    batches = evaluation_batches(dataset, members, train.batch_size * train.crop_size**2)
    scores, _ = score_images(combine(load_alike(runs)), batches, dataset.class_names)
    write_json(
        state.folder / TEST,
        {"what": "the test images", "arm": chosen["arm"], "runs": [str(run) for run in runs], **scores},
    )
