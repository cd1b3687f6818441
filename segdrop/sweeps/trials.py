"""The trainings of a sweep as trials of an Optuna study: what is planned, waiting, running and finished."""

import dataclasses
import json
import math
import os
import socket
import statistics
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, TrialPruned
from optuna.trial import FrozenTrial, TrialState

from .. import interrupts
from ..config.arms import arm_config, arms_of, changes_of, key_of, reference_of, subgrids_of, without_dropout
from ..config.design import references_of, seeds_of, shares_of
from ..config.sweep import SweepConfig
from ..errors import InputError
from ..folders.records import Attributes
from ..folders.sweep import ADVICE
from ..scoring.stopping import follow
from ..typed import fit, shortened
from .storage import ATTEMPTS, NothingWaiting, reading

_FIRST_FOLDS = 4  # of other arms, before one is dropped for its own
_TRIES = 200  # of a search for an arm that it does not have yet


@dataclasses.dataclass(frozen=True)
class Job:
    """A training to do.

    Attributes:
        repeat, fold, seed: which division of the images, which of its folds, and the seed of the training.
        arm: what the arm changes, as `config.arms.key_of` writes it; None for a search's arm not yet proposed.
        proposal: the number of a search's arm whose first training this is.
        rebuilt: the number of a finished trial whose model was removed and is needed again.
    """

    repeat: int
    fold: int
    seed: int
    arm: str | None = None
    proposal: int | None = None
    rebuilt: int | None = None

    @classmethod
    def of(cls, trial: FrozenTrial | optuna.Trial) -> "Job":
        """The job of a trial."""
        return cls(**{field.name: trial.user_attrs.get(field.name) for field in dataclasses.fields(cls)})

    @property
    def training_seed(self) -> int:
        """Seed of the training: the same for all arms, another in each fold.

        Folds that start from the same weights share the luck of these, which correlates their scores beyond what the
        corrected t test allows for (see docs/statistics.md).
        """
        return zlib.crc32(f"{self.seed}/{self.repeat}/{self.fold}".encode())

    def attributes(self) -> dict:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def covers(self, other: "Job") -> bool:
        """Whether this is the training that `other` asks for; the first of a proposed arm answers to two names."""
        if other.arm is None:
            return self.proposal == other.proposal
        return dataclasses.replace(self, proposal=None) == dataclasses.replace(other, proposal=None)


class Trials:
    """The trials of a sweep.

    Args:
        study: the study.
        config: what is planned.
    """

    def __init__(self, study: optuna.Study, config: SweepConfig):
        self.study, self.config = study, config
        self._fitting: set[tuple[int, TrialState]] = set()  # trials that held what they should, by their state then

    def all(self) -> list[FrozenTrial]:
        """Every trial, by number.

        Raises:
            InputError: the database cannot be read, or holds what is no sweep's.
        """
        with reading("the sweep's database"):
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if (trial.number, trial.state) not in self._fitting:
                    _check(trial)
                    self._fitting.add((trial.number, trial.state))
        return trials

    def planned(self, trials: Sequence[FrozenTrial]) -> list[Job]:
        """Every distinct training, arm by arm; of a search those of the arms that are proposed, then the proposals.

        A proposed arm's first training is its proposal.
        """
        config = self.config
        arms = dict.fromkeys(map(key_of, arms_of(config)))
        proposals, first = [], set()
        for number in range(1, config.search + 1):
            own = [trial for trial in trials if trial.user_attrs.get("proposal") == number]
            if any("exhausted" in trial.user_attrs for trial in own):
                continue
            proposals.append(Job(0, 0, config.seeds[0], proposal=number))
            for trial in first_trainings(own):
                first.add(Job(0, 0, config.seeds[0], trial.user_attrs["arm"]))
                if not config.prune or (is_score(trial) and not is_pruned(trial)):
                    arm = json.loads(trial.user_attrs["arm"])
                    arms |= {key_of(reference_of(arm)): None, key_of(arm): None}
        seeds = seeds_of(config, [json.loads(arm) for arm in arms])
        columns = self._columns(list(arms), seeds, trials) if config.stop_when_told else None
        jobs = [
            Job(repeat, fold, seed, arm)
            for i, (arm, own_seeds) in enumerate(zip(arms, seeds, strict=True))
            for repeat in range(config.repeats)
            for seed in own_seeds
            for fold in range(config.folds)
            if columns is None or repeat * config.folds + fold < columns[i]
        ]
        if columns is not None:
            jobs.sort(key=lambda job: (job.repeat, job.fold))  # the next look is soon
        return [job for job in jobs if job not in first] + proposals

    def _columns(self, arms: Sequence[str], seeds: Sequence[Sequence[int]], trials: Sequence[FrozenTrial]) -> list[int]:
        """How many folds and repeats of each arm are to be trained, by the looks at what has ended so far."""
        config = self.config
        changes = [json.loads(arm) for arm in arms]
        place = {
            (arm, column // config.folds, column % config.folds, seed): (i, column, j)
            for i, arm in enumerate(arms)
            for column in range(config.folds * config.repeats)
            for j, seed in enumerate(seeds[i])
        }
        scores = np.full((len(arms), config.folds * config.repeats, max(map(len, seeds))), np.nan)
        open_places = set(place)
        for trial in trials:
            job = Job.of(trial)
            key = (job.arm, job.repeat, job.fold, job.seed)
            if key in place and is_settled(trial, trials):
                open_places.discard(key)
                if is_score(trial):
                    scores[place[key]] = trial.value
        ended = np.ones(scores.shape[:2], bool)
        for key in open_places:
            ended[place[key][:2]] = False
        references = references_of(changes, config.reference)
        return follow(scores, ended, config.folds, shares_of(config, changes), references, config.margin).columns

    def missing(self, trials: Sequence[FrozenTrial]) -> list[Job]:
        """The planned trainings that nobody has finished, runs, or can claim."""
        # By what two jobs have in common at least, so that not every job is compared with every other.
        there: dict[tuple, list[Job]] = {}
        for trial in trials:
            if trial.state in (TrialState.WAITING, TrialState.RUNNING) or is_settled(trial, trials):
                job = Job.of(trial)
                there.setdefault((job.repeat, job.fold, job.seed), []).append(job)
        return [
            job
            for job in self.planned(trials)
            if not any(other.covers(job) for other in there.get((job.repeat, job.fold, job.seed), ()))
        ]

    def enqueue(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.study.enqueue_trial({}, user_attrs=job.attributes())

    def free_stale(self) -> None:
        """Let the trials of dead workers be run again: Optuna's heartbeat tells which they are."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)

    def run_one(
        self, function: Callable[[Job, int], tuple[float, dict]], failures: tuple[type[Exception], ...]
    ) -> None:
        """Claim a waiting trial and run it: `function` takes its job and number, and gives its value and attributes.

        What it raises of `failures`, and a value of None, is recorded as the training's end; `TrialPruned` means that
        there is nothing to do; anything else is raised, and the training is done again by the next worker, up to a
        limit. One that is interrupted waits again at once.
        """

        claimed: list[int] = []
        jobs: list[Job] = []

        def objective(trial: optuna.Trial) -> float:
            claimed.append(trial._trial_id)
            jobs.append(Job.of(trial))
            try:
                trial.set_user_attr("worker", f"{socket.gethostname()}, process {os.getpid()}")
                job = self._claim(trial)
                with interrupts.let_through():
                    value, attributes = function(job, trial.number)
                for name, content in attributes.items():
                    trial.set_user_attr(name, content)
                if value is None:
                    trial.set_user_attr("failure", "its score is undefined: there is no foreground, true or predicted")
                    return math.nan  # which Optuna takes for a failure
                if job.proposal is not None and self.config.prune and self._falls_behind(value, trial.number):
                    trial.set_user_attr("pruned", True)
                return value
            except TrialPruned:
                raise
            except Exception as error:
                interrupts.check()  # what has been made of a request to end is no error of the training
                # A trial that fails without a word would be enqueued again for ever.
                trial.set_user_attr("failure" if isinstance(error, failures) else "error", _one_line(error))
                raise

        try:
            # A trial that is claimed and not told the end of would look as if it ran, until its heartbeat is too old.
            with warnings.catch_warnings(), interrupts.held():
                warnings.simplefilter("ignore", ExperimentalWarning)
                try:
                    self.study.optimize(objective, n_trials=1, catch=failures)
                except KeyboardInterrupt:
                    self.enqueue(jobs)
                    raise
        except NothingWaiting:  # another worker was quicker
            return
        except Exception:
            # A worker that was silent for so long that its trial was freed finds it closed; somebody else runs it.
            trial = next((t for t in self.all() if t._trial_id in claimed), None)
            if trial is None or not trial.state.is_finished() or {"error", "failure"} & set(trial.user_attrs):
                raise

    def _claim(self, trial: optuna.Trial) -> Job:
        """The job of a trial that has just been started, unless it is done or being done already."""
        job = Job.of(trial)
        proposes = job.arm is None
        if proposes:
            proposed = self._propose(job)
            if proposed is None:
                trial.set_user_attr("exhausted", True)
                raise TrialPruned("the search has no further arm")
            job = dataclasses.replace(job, arm=key_of(proposed[0]))
            trial.set_user_attr("drawn", proposed[1])
            trial.set_user_attr("arm", job.arm)
        trials = self.all()
        for other in trials:
            # Two that draw the same arm may see each other in any order: both had better give way than neither.
            running = other.state == TrialState.RUNNING and (proposes or other.number < trial.number)
            done = job.rebuilt is None and is_settled(other, trials)
            if (running or done) and other.number != trial.number and Job.of(other).covers(job):
                trial.set_user_attr("duplicate_of", other.number)
                raise TrialPruned(f"the same training as trial {other.number}")
        if proposes:
            self.enqueue(self.missing(trials))
        return job

    def _propose(self, job: Job) -> tuple[dict, dict] | None:
        """An arm that Optuna's TPE sampler draws, and the draw; None if it finds none that is new.

        A proposal whose first attempt ended with an error keeps its arm.
        """
        space = distributions(subgrids_of(self.config.grid)[0])
        seed = zlib.crc32(f"{self.config.train.seed}/{job.proposal}".encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        trials, base = self.all(), without_dropout(self.config.train)
        known = {t.user_attrs["arm"] for t in trials if "arm" in t.user_attrs and "duplicate_of" not in t.user_attrs}
        known.add(key_of({}))
        for proposed in first_trainings(trials):
            if proposed.user_attrs["proposal"] == job.proposal:
                return json.loads(proposed.user_attrs["arm"]), proposed.user_attrs["drawn"]
            scores = [t.value for t in trials if Job.of(t).arm == Job.of(proposed).arm and is_score(t)]
            # An arm that still runs counts as a bad one, so that others are not proposed beside it.
            state = TrialState.COMPLETE if scores else TrialState.RUNNING
            study.add_trial(
                optuna.create_trial(
                    state=state,
                    params=proposed.user_attrs["drawn"],
                    distributions=space,
                    value=statistics.fmean(scores) if scores else None,
                )
            )
        for _ in range(_TRIES):
            candidate = study.ask(space)
            try:
                point = {name: _decode_value(space[name], value) for name, value in candidate.params.items()}
                arm = changes_of(arm_config(self.config.train, point), base)
            except InputError:  # values that do not go together
                arm = None
            if arm is not None and key_of(arm) not in known:
                return arm, candidate.params
            study.tell(candidate, state=TrialState.FAIL)
        return None

    def _falls_behind(self, value: float, number: int) -> bool:
        other_scores = [
            trial.value for trial in first_trainings(self.all()) if is_score(trial) and trial.number != number
        ]
        return len(other_scores) >= _FIRST_FOLDS and value < statistics.median(other_scores)


def place_of(trial: FrozenTrial) -> str:
    """What a message calls a trial."""
    return f"trial {trial.number} of the sweep's database"


def _check(trial: FrozenTrial) -> None:
    """Raise InputError unless a trial says which training it is."""
    where = place_of(trial)
    attributes = fit(Attributes, trial.user_attrs, where, ADVICE)
    for name in sorted({"repeat", "fold", "seed", *(["arm"] if is_score(trial) else [])} - attributes.keys()):
        raise InputError(f"{where} lacks `{name}`; {ADVICE}.")
    if is_score(trial) and not isinstance(trial.value, float | int):  # SQLite keeps text where a number should be
        raise InputError(f"{where} has no value; {ADVICE}.")
    if "arm" in attributes:
        try:
            arm = json.loads(attributes["arm"])
        except ValueError:
            arm = None
        if not isinstance(arm, dict):
            raise InputError(f"{where} does not fit: `arm` is none, {shortened(attributes['arm'])}; {ADVICE}.")


def first_trainings(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """For each arm that a search has proposed its first training, finished or not."""
    by_proposal: dict[int, FrozenTrial] = {}
    for trial in trials:
        if {"proposal", "arm"} <= set(trial.user_attrs) and "duplicate_of" not in trial.user_attrs:
            number = trial.user_attrs["proposal"]
            if number not in by_proposal or is_score(trial):
                by_proposal[number] = trial
    return list(by_proposal.values())


def is_score(trial: FrozenTrial) -> bool:
    """Whether a trial counts: a training that is complete, and no mere rebuilding of a model."""
    return trial.state == TrialState.COMPLETE and "rebuilt" not in trial.user_attrs


def is_pruned(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("pruned"))


def is_settled(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial's training need not be run again: it is complete, or fails whenever it is run."""
    if trial.state == TrialState.COMPLETE or "exhausted" in trial.user_attrs:
        return True
    if trial.state != TrialState.FAIL:
        return False
    if "failure" in trial.user_attrs:
        return True
    if "error" not in trial.user_attrs:
        return False
    job = Job.of(trial)
    errors = Counter(
        other.state == TrialState.FAIL and "error" in other.user_attrs and Job.of(other).covers(job) for other in trials
    )
    return errors[True] >= ATTEMPTS


def distributions(subgrid: Mapping) -> dict[str, BaseDistribution]:
    """A search's space in Optuna's terms: a list is one of choices; {"low": 0.05, "high": 0.5} a range ("log", "step").

    Raises:
        InputError: a range is none.
    """
    space: dict[str, BaseDistribution] = {}
    for name, values in subgrid.items():
        if isinstance(values, Mapping):
            whole = all(isinstance(values.get(end), int) for end in ("low", "high"))
            try:
                space[name] = (IntDistribution if whole else FloatDistribution)(**values)
            except (TypeError, ValueError) as error:
                raise InputError(f"`grid` has no range of {name!r} in {dict(values)!r}: {error}.") from error
        else:
            space[name] = CategoricalDistribution([json.dumps(value) for value in values])
    return space


def _decode_value(distribution: BaseDistribution, drawn):
    return json.loads(drawn) if isinstance(distribution, CategoricalDistribution) else drawn


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__ if not isinstance(error, InputError) else ''} {error}".split())[:300]
