"""The results of a sweep, read from its trials and its folder."""

import math
import statistics
from collections.abc import Mapping, Sequence, Set

from optuna.trial import FrozenTrial, TrialState

from ..config.arms import DROPOUT_FIELDS, changes_of, curve_of, key_of, name_of
from ..config.design import contrasts_of, references_of, seeds_of, shares_of
from ..config.sweep import SweepConfig
from ..config.train import TrainConfig
from ..errors import InputError
from ..folders.records import FoldScores
from ..folders.run import PER_IMAGE, read_images
from ..folders.sweep import ADVICE, FOLDS, SWEEP, groups_in, read_fold_rows, read_test, training_dir
from .outcome import arms_in, fold_scores, leading, rate_in, scored_by_training, training_in
from .results import STORED, Arm, Failure, Results, Training
from .state import State
from .trials import first_trainings, is_pruned, is_settled


def results(state: State, reference: str | None = None) -> Results:
    """All that is finished, for `comparing.answer`.

    Args:
        reference: the name of the arm that the others are compared with, where it is not that of the configuration.

    Raises:
        InputError: there is no arm of this name, or the sweep was stopped by comparisons with another one.
    """
    trials = state.trials.all()
    arms = arms_in(state, trials)
    keys = [key_of(arm) for arm in arms]
    stated, seeds = references_of(arms, state.config.reference), seeds_of(state.config, arms)
    references = _asked(state.config, arms, stated, reference)
    pruned = {trial.user_attrs["arm"] for trial in first_trainings(trials) if is_pruned(trial)}
    scored = scored_by_training(trials)
    scores = {trial.number: fold_scores(trial) for trial in scored.values()}
    failed = {
        training_in(trial): trial.user_attrs.get("failure") or trial.user_attrs["error"]
        for trial in trials
        if trial.state == TrialState.FAIL and is_settled(trial, trials)
    }
    if unknown := {arm for arm, *_ in scored} - set(keys):
        raise InputError(f"{state.folder / SWEEP} has no arm {min(unknown)}, which has been trained; restore the file.")
    rows = read_fold_rows(state.folder)
    known = {row["id"] for row in rows}
    test, (leader, _), config = read_test(state.folder), leading(state, trials), state.config
    told_of: dict[str, list[FoldScores]] = {}
    for (arm, *_), trial in scored.items():
        told_of.setdefault(arm, []).append(scores[trial.number])
    share = {arm: statistics.fmean(t["val_images"] / t["train_images"] for t in told) for arm, told in told_of.items()}
    whole = [share[key] for arm, key in zip(arms, keys, strict=True) if key in share and not arm.get("train_fraction")]
    return Results(
        title=state.folder.absolute().name,
        facts=_facts(state, [told["device"] for told in scores.values()], max(map(len, seeds))),
        arms=[
            Arm(
                name=name_of(arm),
                rate=rate_in(arm),
                curve=curve_of(arm),
                reference=reference,
                changes=arm,
                pruned=key in pruned,
                test_share=share.get(key) if "train_fraction" in arm else None,
                labelled=_labelled(told_of.get(key, ())),
                seeds=own_seeds if len(own_seeds) > len(config.seeds) else (),
            )
            for arm, key, reference, own_seeds in zip(arms, keys, references, seeds, strict=True)
        ],
        folds=config.folds,
        repeats=config.repeats,
        seeds=config.seeds,
        test_share=statistics.fmean(whole) if whole else 1 / (config.folds - 1),
        trainings=[
            _training(state, keys.index(arm), place, trial, scores[trial.number], known)
            for (arm, *place), trial in scored.items()
        ],
        failures=[Failure(keys.index(arm), *place, reason) for (arm, *place), reason in failed.items() if arm in keys],
        groups=groups_in(rows),
        test=test if test and leader is not None and test["arm"] == name_of(leader) else None,
        margin=config.margin,
        contrasts=contrasts_of(config.contrasts, arms, stated),
        stated=stated,
        before=state.record.segdrop if state.record.single_tests else "",
        stops=config.stop_when_told,
        shares=shares_of(config, arms) if config.stop_when_told else (),
    )


def _labelled(told: Sequence[FoldScores]) -> float:
    """The mean number of groups, or else images, that an arm's trainings had to learn from; 0 where there are none."""
    return statistics.fmean([one.get("train_groups") or one["train_images"] for one in told] or [0])


def _asked(config: SweepConfig, arms: Sequence[Mapping], stated: list[int], reference: str | None) -> list[int]:
    """For each arm the index of its reference, where the answer may be asked of another than was stated beforehand."""
    references = references_of(arms, reference) if reference else stated
    if config.stop_when_told and references != stated:
        raise InputError(
            f"`reference` cannot be {reference!r} in a sweep that stops when told: it has stopped by other comparisons."
        )
    return references


def _training(
    state: State, arm: int, place: Sequence[int], trial: FrozenTrial, scores: FoldScores, known: Set[str]
) -> Training:
    """A finished trial; `place`: repeat, fold and seed; `known`: the images in the folds."""
    return Training(
        arm,
        *place,
        seconds=trial.user_attrs.get("seconds", math.nan),
        images=_per_image(state, trial.number, known),
        constant_dice=_none_to_nan(scores.get("constant_dice")),
        **{name: _none_to_nan(scores[name]) for name in STORED},
    )


def _facts(state: State, devices: Sequence[str], most: int) -> dict[str, str]:
    """The small table of the answer; `most`: the number of seeds of the arm that has most."""
    config, record, train = state.config, state.record, state.config.train
    seeds = ", ".join(map(str, config.seeds))
    further = f"; {most} of what most arms are compared with" if most > len(config.seeds) else ""
    groups = "" if record.groups is None else f" of {record.groups} groups"
    weights = "random" if record.random_weights else train.encoder_weights
    told = ("data", "epochs", "crop_size", "batch_size", "encoder", "encoder_weights", "mixed_precision", "cache_mb")
    chosen = {name: choice["value"] for name, choice in (record.plan or {}).get("choices", {}).items()}
    other_options = {
        k: v
        for k, v in changes_of(train, TrainConfig.from_json({})).items()
        if k not in (*told, *chosen, *DROPOUT_FIELDS)
    }
    return {
        "data": train.data,
        "images in the folds": f"{record.images}{groups}",
        "classes": ", ".join(record.class_names),
        "cross-validation": f"{config.folds} folds, {config.repeats} repeat(s), seeds {seeds}{further}",
        "training": f"{train.epochs} epochs at most, crops of {train.crop_size} in batches of {train.batch_size}",
        "encoder": f"{train.encoder}, weights: {'none (random)' if weights == 'none' else weights}",
        **({"plan": ", ".join(f"{name}={value}" for name, value in chosen.items())} if chosen else {}),
        **(
            {"other options": ", ".join(f"{name}={value}" for name, value in other_options.items())}
            if other_options
            else {}
        ),
        "precision": record.mixed_precision,
        "device": "; ".join(sorted(set(devices))) or "nothing trained yet",
        "segdrop": record.segdrop,
    }


def _per_image(state: State, number: int, known: Set[str]) -> dict[str, float]:
    run = training_dir(state.folder, number)
    found = {row["id"]: float(row["dice"] or "nan") for row in read_images(run)}
    if unknown := found.keys() - known:
        raise InputError(f"{run / PER_IMAGE} does not fit: {FOLDS} has no image {min(unknown)!r}; {ADVICE}.")
    return found


def _none_to_nan(value) -> float:
    return math.nan if value is None else value
