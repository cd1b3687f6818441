"""What a sweep has come to: its results, the chosen arm, and that arm's models."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from .answers import Arm, Failure, Results, Training
from .arms import DROPOUT_FIELDS, arms_of, changes_of, curve_of, key_of, name_of, reference_of
from .config import TrainConfig
from .run import MODEL, PER_IMAGE, read_csv, write_json
from .sweep_folder import CHOSEN, FOLDS, TEST, training_dir
from .sweep_state import State
from .trials import Job, first_trainings, is_pruned, is_score, is_settled


def results(state: State) -> Results:
    """All that is finished, for `segdrop.answers.answer`."""
    trials = state.trials.all()
    arms = _arms(state, trials)
    keys = [key_of(arm) for arm in arms]
    pruned = {trial.user_attrs["arm"] for trial in first_trainings(trials) if is_pruned(trial)}
    scored = scored_by_training(trials)
    failed = {
        _training(trial): trial.user_attrs.get("failure") or trial.user_attrs["error"]
        for trial in trials
        if trial.state == TrialState.FAIL and is_settled(trial, trials)
    }
    rows = read_csv(state.folder / FOLDS)
    path, config = state.folder / TEST, state.config
    test, (leader, _) = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None, leading(state, trials)
    shares: dict[str, list[float]] = {}
    for (arm, *_), trial in scored.items():
        scores = trial.user_attrs["scores"]
        shares.setdefault(arm, []).append(scores["val_images"] / scores["train_images"])
    share = {arm: statistics.fmean(values) for arm, values in shares.items()}
    whole = [share[key] for arm, key in zip(arms, keys, strict=True) if key in share and not arm.get("train_fraction")]
    return Results(
        title=state.folder.absolute().name,
        facts=_facts(state, [trial.user_attrs["scores"]["device"] for trial in scored.values()]),
        arms=[
            Arm(
                name=name_of(arm),
                rate=_rate(arm),
                curve=curve_of(arm),
                reference=keys.index(key_of(reference_of(arm))),
                changes=arm,
                pruned=key in pruned,
                test_share=share.get(key) if "train_fraction" in arm else None,
            )
            for arm, key in zip(arms, keys, strict=True)
        ],
        folds=config.folds,
        repeats=config.repeats,
        seeds=config.seeds,
        test_share=statistics.fmean(whole) if whole else 1 / (config.folds - 1),
        trainings=[
            Training(
                arm=keys.index(arm),
                repeat=repeat,
                fold=fold,
                seed=seed,
                seconds=trial.user_attrs["seconds"],
                images=_per_image(state, trial.number),
                **{name: _number(trial.user_attrs["scores"][name]) for name in _SCORES},
            )
            for (arm, repeat, fold, seed), trial in scored.items()
        ],
        failures=[Failure(keys.index(arm), *place, reason) for (arm, *place), reason in failed.items() if arm in keys],
        groups={row["id"]: row["group"] for row in rows} if "group" in rows[0] else None,
        test=test if test and leader is not None and test["arm"] == name_of(leader) else None,
    )


_SCORES = ("dice", "iou", "train_dice", "best_epoch", "epochs", "ece", "ece_foreground", "brier")


def _arms(state: State, trials: Sequence[FrozenTrial]) -> list[dict]:
    """The grid's arms, then those that a search has proposed, each after its reference."""
    arms = arms_of(state.config)
    for trial in first_trainings(trials):
        arm = json.loads(trial.user_attrs["arm"])
        arms += [one for one in (reference_of(arm), arm) if one not in arms]
    return arms


def _training(trial: FrozenTrial) -> tuple[str | None, int, int, int]:
    job = Job.of(trial)
    return job.arm, job.repeat, job.fold, job.seed


def scored_by_training(trials: Sequence[FrozenTrial]) -> dict[tuple, FrozenTrial]:
    """For each distinct training (arm, repeat, fold, seed) the trial that counts."""
    scored: dict[tuple, FrozenTrial] = {}
    for trial in trials:
        if is_score(trial):
            scored.setdefault(_training(trial), trial)
    return scored


def leading(state: State, trials: Sequence[FrozenTrial]) -> tuple[dict | None, set[str]]:
    """The complete arm with the highest mean Dice (of equal ones the lower rate, then the first); all complete arms."""
    config, scored, best, complete = state.config, scored_by_training(trials), None, set()
    for arm in _arms(state, trials):
        places = [
            (key_of(arm), repeat, fold, seed)
            for repeat in range(config.repeats)
            for fold in range(config.folds)
            for seed in config.seeds
        ]
        values = [scored[place].value for place in places if place in scored]
        if len(values) < len(places):
            continue
        complete.add(key_of(arm))
        rank = (-statistics.fmean(values), _rate(arm) if _rate(arm) is not None else math.inf)
        if best is None or rank < best[0]:
            best = rank, arm
    return None if best is None else best[1], complete


def remove_models(state: State) -> None:
    """Remove the models of arms that are beaten or that nothing can complete, and what failed attempts left."""
    trials = state.trials.all()
    arm, complete = leading(state, trials)
    counted = {trial.number for trial in scored_by_training(trials).values()}
    hopeless = {
        trial.user_attrs.get("arm")
        for trial in trials
        if is_pruned(trial) or (trial.state == TrialState.FAIL and is_settled(trial, trials))
    }
    out = (complete | hopeless) - (set() if arm is None else {key_of(arm)})
    for trial in trials:
        beaten = trial.user_attrs.get("arm") in out
        abandoned = trial.state.is_finished() and trial.number not in counted
        if beaten or abandoned:
            (training_dir(state.folder, trial.number) / MODEL).unlink(missing_ok=True)


def _ensemble(state: State, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trainings whose models are kept: the chosen arm's, one of each fold."""
    arm, _ = leading(state, trials)
    if arm is None:
        return []
    scored = scored_by_training(trials)
    return [scored[(key_of(arm), 0, fold, state.config.seeds[0])] for fold in range(state.config.folds)]


def models_lacking(state: State) -> list[Job]:
    """What has to be trained again because an arm is chosen that was not the best when its models were removed."""
    trials = state.trials.all()
    given_up_or_under_way = {
        trial.user_attrs.get("rebuilt")
        for trial in trials
        if not trial.state.is_finished() or (trial.state == TrialState.FAIL and is_settled(trial, trials))
    }
    return [
        Job(0, trial.user_attrs["fold"], trial.user_attrs["seed"], trial.user_attrs["arm"], rebuilt=trial.number)
        for trial in _ensemble(state, trials)
        if not (training_dir(state.folder, trial.number) / MODEL).is_file()
        and trial.number not in given_up_or_under_way
    ]


def choose(state: State) -> bool:
    """Name the chosen arm in chosen.json if nothing is left to train; returns whether it is so."""
    trials = state.trials.all()
    unfinished = any(not trial.state.is_finished() for trial in trials)
    if unfinished or state.trials.missing(trials) or models_lacking(state):
        return False
    if not (ensemble := _ensemble(state, trials)):
        return False
    arm = json.loads(ensemble[0].user_attrs["arm"])
    epochs = [
        trial.user_attrs["scores"]["best_epoch"] + 1
        for (key, *_), trial in scored_by_training(trials).items()
        if key == key_of(arm)
    ]
    chosen = {
        "arm": name_of(arm),
        "changes": arm,
        "seed": state.config.seeds[0],
        "stop_after": round(statistics.median(epochs)),
        "best_epochs": epochs,
        "trainings": [training_dir(state.folder, trial.number).name for trial in ensemble],
    }
    write_json(state.folder / CHOSEN, chosen)
    return True


def _facts(state: State, devices: Sequence[str]) -> dict[str, str]:
    config, record, train = state.config, state.record, state.config.train
    seeds = ", ".join(map(str, config.seeds))
    groups = "" if record["groups"] is None else f" of {record['groups']} groups"
    weights = "random" if record["random_weights"] else train.encoder_weights
    told = ("data", "epochs", "crop_size", "batch_size", "encoder", "encoder_weights", "mixed_precision", "cache_mb")
    others = {k: v for k, v in changes_of(train, TrainConfig()).items() if k not in (*told, *DROPOUT_FIELDS)}
    return {
        "data": train.data,
        "images in the folds": f"{record['images']}{groups}",
        "classes": ", ".join(record["class_names"]),
        "cross-validation": f"{config.folds} folds, {config.repeats} repeat(s), seeds {seeds}",
        "training": f"{train.epochs} epochs at most, crops of {train.crop_size} in batches of {train.batch_size}",
        "encoder": f"{train.encoder}, weights: {'none (random)' if weights == 'none' else weights}",
        **({"other options": ", ".join(f"{name}={value}" for name, value in others.items())} if others else {}),
        "precision": record["mixed_precision"],
        "device": "; ".join(sorted(set(devices))) or "nothing trained yet",
        "segdrop": record["segdrop"],
    }


def _per_image(state: State, number: int) -> dict[str, float]:
    path = training_dir(state.folder, number) / PER_IMAGE
    if not path.is_file():
        return {}
    return {row["id"]: float(row["dice"] or "nan") for row in read_csv(path)}


def _rate(arm: Mapping) -> float | None:
    rate = arm.get("encoder_dropout", 0.0)
    return float(rate) if isinstance(rate, (int, float)) else None


def _number(value) -> float:
    return math.nan if value is None else value
