"""What a sweep has come to: which arms are complete, which is chosen, and whose models are kept."""

import json
import statistics
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from ..config.arms import arms_of, key_of, name_of, reference_of
from ..files import write_json
from ..folders.records import FoldScores
from ..folders.run import MODEL
from ..folders.sweep import ADVICE, CHOSEN, training_dir
from ..typed import fit
from .results import best_arm
from .state import State
from .trials import Job, first_trainings, is_pruned, is_score, is_settled, place_of


def arms_in(state: State, trials: Sequence[FrozenTrial]) -> list[dict]:
    """The grid's arms, then those that a search has proposed, each after its reference."""
    arms = arms_of(state.config)
    for trial in first_trainings(trials):
        arm = json.loads(trial.user_attrs["arm"])
        arms += [candidate for candidate in (reference_of(arm), arm) if candidate not in arms]
    return arms


def training_in(trial: FrozenTrial) -> tuple[str | None, int, int, int]:
    job = Job.of(trial)
    return job.arm, job.repeat, job.fold, job.seed


def rate_in(arm: Mapping) -> float | None:
    rate = arm.get("encoder_dropout", 0.0)
    return float(rate) if isinstance(rate, (int, float)) else None


def scored_by_training(trials: Sequence[FrozenTrial]) -> dict[tuple, FrozenTrial]:
    """For each distinct training (arm, repeat, fold, seed) the trial that counts."""
    scored: dict[tuple, FrozenTrial] = {}
    for trial in trials:
        if is_score(trial):
            scored.setdefault(training_in(trial), trial)
    return scored


def fold_scores(trial: FrozenTrial) -> FoldScores:
    """The scores that are kept with a finished training's trial.

    Raises:
        InputError: they do not fit.
    """
    return fit(FoldScores, trial.user_attrs.get("scores"), f"`scores` of {place_of(trial)}", ADVICE)


def leading(state: State, trials: Sequence[FrozenTrial]) -> tuple[dict | None, set[str]]:
    """The best of the complete arms so far, and the keys of all complete arms."""
    config, scored = state.config, scored_by_training(trials)
    complete, candidates = [], []
    for arm in arms_in(state, trials):
        # Where arms are trained no further once they are told, the first repeat is what an arm needs to be chosen.
        places = [
            (key_of(arm), repeat, fold, seed)
            for repeat in range(1 if config.stop_when_told else config.repeats)
            for fold in range(config.folds)
            for seed in config.seeds
        ]
        if all(place in scored for place in places):
            complete.append(arm)
            candidates.append(([scored[place].value for place in places], rate_in(arm)))
    best = best_arm(candidates)
    return None if best is None else complete[best], {key_of(arm) for arm in complete}


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
    own = {place: trial for place, trial in scored_by_training(trials).items() if place[0] == key_of(arm)}
    # By repeat, fold and seed, whatever order the workers had.
    epochs = [fold_scores(own[place])["best_epoch"] + 1 for place in sorted(own)]
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
