"""Trials of a sweep: what is planned, what each worker claims, what is settled, and what a search proposes.

The trainings are functions that return at once; Optuna keeps its trials in memory.
"""

import json
import signal
import time
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from segdrop import interrupts
from segdrop.config.arms import arms_of, key_of
from segdrop.config.sweep import SweepConfig
from segdrop.config.train import TrainConfig
from segdrop.errors import Diverged, InputError
from segdrop.interrupts import Terminated, heeding
from segdrop.sweeps.trials import ATTEMPTS, Job, Trials, distributions, first_trainings, is_pruned, is_score

pytestmark = pytest.mark.usefixtures("quiet_optuna")
SPATIAL = {"dropout_kind": ["spatial"]}
NONE = key_of({})


def config(rates=(0.1, 0.2), **fields):
    fields = {"folds": 2, "grid": {"encoder_dropout": list(rates), **SPATIAL}, **fields}
    return SweepConfig(TrainConfig(data="nowhere"), **fields)


@pytest.fixture
def no_deadline(monkeypatch):
    """A SIGTERM does not end the tests' process in the end."""
    monkeypatch.setattr(interrupts, "DEADLINE", 1e6)
    yield
    time.sleep(0.5)  # a thread sets it, which may be late


def trials_of(sweep):
    return Trials(optuna.create_study(direction="maximize"), sweep)


def started(sweep):
    trials = trials_of(sweep)
    trials.enqueue(trials.missing([]))
    return trials


def arm(rate, **others):
    return key_of({"encoder_dropout": rate, "dropout_kind": "spatial", **others})


def dice(job, number):
    """A training whose score names its arm and fold."""
    return 0.5 + 0.1 * json.loads(job.arm).get("encoder_dropout", 0.0) + 0.01 * job.fold, {"scores": {}}


def run_all(trials, function=dice, failures=()):
    """What a worker does, without the waiting."""
    for _ in range(500):
        known = trials.all()
        if any(trial.state == TrialState.WAITING for trial in known):
            trials.run_one(function, failures)
        elif missing := trials.missing(known):
            trials.enqueue(missing)
        else:
            return known
    raise AssertionError("the sweep does not end")


def training(trial):
    job = Job.of(trial)
    return job.arm, job.repeat, job.fold, job.seed


def another(trials):
    """Another worker's view of the same trials."""
    study = optuna.load_study(study_name=trials.study.study_name, storage=trials.study._storage)
    return Trials(study, trials.config)


def scored(trials):
    return Counter(training(trial) for trial in trials if is_score(trial))


def raising(error):
    def function(job, number):
        raise error

    return function


def test_every_training_of_a_grid_is_planned_once():
    planned = trials_of(config(folds=3, repeats=2, seeds=(4, 7), reference_seeds=2)).planned([])
    assert len(planned) == len(set(planned)) == 3 * 3 * 2 * 2
    expected = {
        (key, repeat, fold, seed)
        for key in (NONE, arm(0.1), arm(0.2))
        for repeat in (0, 1)
        for fold in (0, 1, 2)
        for seed in (4, 7)
    }
    assert {(job.arm, job.repeat, job.fold, job.seed) for job in planned} == expected


def test_what_others_are_compared_with_is_planned_with_further_seeds():
    planned = trials_of(config(folds=3, seeds=(4, 7), reference_seeds=5)).planned([])
    assert {job.seed for job in planned if job.arm == NONE} == {4, 7, 8, 9, 10}
    assert {job.seed for job in planned if job.arm != NONE} == {4, 7}


def test_all_arms_share_a_trainings_seed_and_no_two_folds_repeats_or_seeds_do():
    planned = trials_of(config(folds=3, repeats=2, seeds=(4, 7), reference_seeds=2)).planned([])
    seeds = {}
    for job in planned:
        seeds.setdefault((job.repeat, job.fold, job.seed), set()).add(job.training_seed)
    assert all(len(values) == 1 for values in seeds.values())
    assert len(set.union(*seeds.values())) == 3 * 2 * 2


def test_an_enqueued_grid_is_not_missing_and_is_run_whole():
    trials = started(config())
    assert trials.missing(trials.all()) == []
    known = run_all(trials)
    assert scored(known) == Counter({(key, 0, fold, 0): 1 for key in (NONE, arm(0.1), arm(0.2)) for fold in (0, 1)})
    assert [trial.value for trial in known] == pytest.approx([0.5, 0.51, 0.51, 0.52, 0.52, 0.53])


def test_an_interrupted_enqueueing_is_made_up_for():
    trials = trials_of(config())
    trials.enqueue(trials.planned([])[:2])
    assert trials.missing(trials.all()) == trials.planned([])[2:]


def test_more_repeats_add_only_their_own_trainings():
    trials = started(config())
    run_all(trials)
    trials.config = config(repeats=2)
    missing = trials.missing(trials.all())
    assert {job.repeat for job in missing} == {1} and len(missing) == 6
    assert sum(scored(run_all(trials)).values()) == 12


def test_a_trainings_attributes_and_worker_are_kept():
    trials = started(config())
    trials.run_one(lambda job, number: (0.7, {"scores": {"dice": 0.7}, "seconds": number}), ())
    first = trials.all()[0]
    assert (first.state, first.value) == (TrialState.COMPLETE, 0.7)
    assert first.user_attrs["scores"] == {"dice": 0.7} and first.user_attrs["seconds"] == 0
    assert "process" in first.user_attrs["worker"]


def test_what_another_worker_has_finished_is_not_trained_again():
    trials = started(config())
    trials.enqueue(trials.planned([]))  # by a second worker that found everything missing at the same time
    known = run_all(trials)
    assert set(scored(known).values()) == {1}
    states = Counter(trial.state for trial in known)
    assert states == {TrialState.COMPLETE: 6, TrialState.PRUNED: 6}
    assert {known[trial.user_attrs["duplicate_of"]].state for trial in known[6:]} == {TrialState.COMPLETE}


def test_what_another_worker_trains_is_not_begun():
    trials = trials_of(config())
    job = trials.planned([])[0]
    trials.enqueue([job, job])
    begun = []

    def function(job, number):
        begun.append(number)
        if number == 0:
            another(trials).run_one(function, ())
        return 0.5, {}

    trials.run_one(function, ())
    assert begun == [0]
    assert [trial.state for trial in trials.all()] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_of_two_that_run_beside_each_other_the_first_goes_on():
    trials = trials_of(config())
    job = trials.planned([])[0]
    trials.enqueue([job, job])
    other = trials.all()[1]._trial_id
    trials.study._storage.set_trial_state_values(other, TrialState.RUNNING)
    trials.run_one(dice, ())
    assert [trial.state for trial in trials.all()] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_a_training_that_diverges_is_recorded_and_not_tried_again():
    trials = started(config())

    def function(job, number):
        if job.arm == arm(0.2):
            raise Diverged("The loss became nan\nat step 1.")
        return dice(job, number)

    known = run_all(trials, function, (Diverged,))
    failed = [trial for trial in known if trial.state == TrialState.FAIL]
    assert [training(trial)[::2] for trial in failed] == [(arm(0.2), 0), (arm(0.2), 1)]
    assert {trial.user_attrs["failure"] for trial in failed} == {"The loss became nan at step 1."}
    assert len(scored(known)) == 4


def test_an_undefined_score_is_a_failure_and_ends():
    trials = started(config())
    known = run_all(trials, lambda job, number: (None if job.fold else 0.5, {"scores": {}}))
    failed = [trial for trial in known if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["fold"] for trial in failed] == [1, 1, 1]
    assert all("undefined" in trial.user_attrs["failure"] for trial in failed)


def test_an_error_ends_the_worker_and_the_training_is_tried_three_times():
    assert ATTEMPTS == 3
    trials = trials_of(config())
    job = trials.planned([])[0]
    for attempt in range(3):
        assert job in trials.missing(trials.all())
        trials.enqueue([job])
        with pytest.raises(OSError, match="disk"):
            trials.run_one(raising(OSError(f"the disk is full, {attempt}")), (Diverged,))
    assert job not in trials.missing(trials.all())
    assert [trial.state for trial in trials.all()] == [TrialState.FAIL] * 3
    assert [trial.user_attrs["error"] for trial in trials.all()] == [
        f"OSError the disk is full, {attempt}" for attempt in range(3)
    ]


def test_errors_of_other_trainings_do_not_use_up_the_attempts():
    trials = trials_of(config())
    jobs = trials.planned([])[:3]
    for job in jobs:
        trials.enqueue([job])
        with pytest.raises(OSError):
            trials.run_one(raising(OSError("gone")), ())
    assert trials.missing(trials.all()) == trials.planned([])


def test_a_training_that_succeeds_after_an_error_counts():
    trials = trials_of(config())
    trials.enqueue(trials.planned([])[:1])
    with pytest.raises(OSError):
        trials.run_one(raising(OSError("gone")), ())
    assert set(scored(run_all(trials)).values()) == {1}
    assert [trial.state for trial in trials.all()].count(TrialState.FAIL) == 1


def test_an_interruption_is_no_error_of_the_training():
    trials = started(config())
    with pytest.raises(KeyboardInterrupt):
        trials.run_one(raising(KeyboardInterrupt()), ())
    interrupted, *_, again = trials.all()
    assert interrupted.state == TrialState.FAIL and not {"error", "failure"} & set(interrupted.user_attrs)
    assert again.state == TrialState.WAITING and Job.of(again) == Job.of(interrupted)
    assert trials.missing(trials.all()) == []


def test_an_interruption_that_tensorflow_makes_another_error_of_is_no_error_of_the_training(no_deadline):
    trials = started(config())

    def interrupted(job, number):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise SystemError("bad argument to internal function") from None

    with pytest.raises(Terminated), heeding():
        trials.run_one(interrupted, (SystemError,))
    assert not {"error", "failure"} & set(trials.all()[0].user_attrs)
    assert trials.all()[-1].state == TrialState.WAITING and trials.missing(trials.all()) == []


@pytest.mark.parametrize("place", ["_claim", "tell"])
def test_a_trial_is_neither_claimed_nor_ended_by_half(place, monkeypatch, no_deadline):
    """An interrupt in between would leave it running in the eyes of all, until its heartbeat is too old."""
    trials = started(config())
    asked = []

    def then_interrupt(original):
        def call(*arguments, **options):
            found = original(*arguments, **options)
            if not asked:
                asked.append(signal.raise_signal(signal.SIGTERM))
            return found

        return call

    if place == "_claim":
        monkeypatch.setattr(trials, "_claim", then_interrupt(trials._claim))
    else:
        told = optuna.study._optimize._tell_with_warning
        monkeypatch.setattr(optuna.study._optimize, "_tell_with_warning", then_interrupt(told))
    with pytest.raises(Terminated), heeding():
        trials.run_one(dice, ())
    assert asked and all(trial.state != TrialState.RUNNING for trial in trials.all())
    states = Counter(trial.state for trial in trials.all())
    ended = {TrialState.FAIL: 1} if place == "_claim" else {TrialState.COMPLETE: 1}
    assert states == {**ended, TrialState.WAITING: 6 - (place == "tell")}


def test_a_worker_whose_trial_was_given_to_another_goes_on():
    trials = started(config())

    def silent_for_too_long(job, number):
        if number == 0:
            trials.study.tell(0, state=TrialState.FAIL)  # another worker frees the trial
        return dice(job, number)

    known = run_all(trials, silent_for_too_long)
    assert known[0].state == TrialState.FAIL and known[0].value is None
    assert set(scored(known).values()) == {1} and len(scored(known)) == 6


def test_a_rebuilding_is_no_score_and_can_be_needed_twice():
    trials = started(config())
    run_all(trials)
    for _ in range(2):
        trials.enqueue([Job(0, 0, 0, NONE, rebuilt=0)])
        trials.run_one(dice, ())
    known = trials.all()
    assert [trial.state for trial in known[6:]] == [TrialState.COMPLETE] * 2
    assert sum(map(is_score, known)) == 6 and trials.missing(known) == []


def test_only_complete_trainings_are_scores():
    trials = started(config())
    trials.run_one(raising(Diverged("nan")), (Diverged,))
    trials.run_one(dice, ())
    assert [is_score(trial) for trial in trials.all()] == [False, True, False, False, False, False]


SPACE = {"encoder_dropout": {"low": 0.05, "high": 0.5}, **SPATIAL}
COUPLED = {"encoder_dropout": [0.1, 0.2], "lr": [0.001, 0.0001], **SPATIAL}


def proposals(known):
    return {trial.user_attrs["proposal"]: trial.user_attrs["arm"] for trial in first_trainings(known)}


def test_a_search_trains_distinct_arms_and_the_one_without_dropout_on_every_fold():
    trials = started(config(grid=SPACE, search=4, folds=3))
    known = run_all(trials)
    proposed = proposals(known)
    assert sorted(proposed) == [1, 2, 3, 4] and len(set(proposed.values())) == 4
    assert all(0.05 <= json.loads(key)["encoder_dropout"] <= 0.5 for key in proposed.values())
    assert scored(known) == Counter({(key, 0, fold, 0): 1 for key in (NONE, *proposed.values()) for fold in range(3)})


def test_what_a_search_has_planned_is_what_it_trains():
    trials = started(config(grid=SPACE, search=3, folds=3))
    assert len(trials.planned([])) == 3 + 3  # the arm without dropout, and a first training for each proposal
    known = run_all(trials)
    assert len(trials.planned(known)) == len(scored(known)) == 4 * 3


def test_proposed_arms_bring_their_own_references():
    known = run_all(started(config(grid=COUPLED, search=4)))
    arms = {key for key, *_ in scored(known)}
    assert arms == {
        NONE,
        key_of({"lr": 0.0001}),
        arm(0.1),
        arm(0.2),
        arm(0.1, lr=0.0001),
        arm(0.2, lr=0.0001),
    }
    assert set(scored(known).values()) == {1}


def test_an_exhausted_space_ends_the_search():
    trials = started(config(search=5))
    known = run_all(trials)
    assert set(proposals(known).values()) == {arm(0.1), arm(0.2)}
    exhausted = [trial for trial in known if "exhausted" in trial.user_attrs]
    assert [trial.state for trial in exhausted] == [TrialState.PRUNED] * 3
    assert len(trials.planned(known)) == len(scored(known)) == 6


def test_values_that_do_not_go_together_are_not_proposed():
    grid = {"encoder_dropout": [0.1], "dropout_kind": ["spatial", "block"], "dropout_block_size": [None, 5]}
    known = run_all(started(config(grid=grid, search=4)))
    changes = [json.loads(key) for key in proposals(known).values()]
    assert sorted((one["dropout_kind"], one.get("dropout_block_size")) for one in changes if len(one) > 2) == [
        ("block", 5)
    ]
    assert sorted(one["dropout_kind"] for one in changes) == ["block", "block", "spatial"]


def test_the_same_seed_proposes_the_same_arms_whoever_claims_first():
    sweep = config(grid=SPACE, search=3)
    first, second = proposals(run_all(started(sweep))), proposals(run_all(started(sweep)))
    assert first == second


def test_proposals_come_to_lie_where_scores_are_high():
    def peaked(job, number):
        rate = json.loads(job.arm).get("encoder_dropout", 0.0)
        return 1 - (rate - 0.3) ** 2, {}

    known = run_all(started(config(grid={"encoder_dropout": {"low": 0.0, "high": 0.9}, **SPATIAL}, search=30)), peaked)
    distances = [abs(json.loads(arm).get("encoder_dropout", 0.0) - 0.3) for _, arm in sorted(proposals(known).items())]
    assert sum(distances[20:]) / 10 < 0.5 * sum(distances[:10]) / 10


SAME = (
    {"encoder_dropout": 0.1, "dropout_kind": "spatial"},
    {"encoder_dropout": "0.1", "dropout_kind": '"spatial"'},
)


def test_two_proposals_of_the_same_arm_train_it_once(monkeypatch):
    trials = trials_of(config(search=2))
    trials.enqueue([Job(0, 0, 0, proposal=1), Job(0, 0, 0, proposal=2)])
    begun = []

    def function(job, number):
        begun.append(job.proposal)
        if number == 0:
            another(trials).run_one(function, ())
        return dice(job, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "_propose", lambda self, job: SAME)
        trials.run_one(function, ())
    assert begun == [1]
    known = run_all(trials)
    assert set(proposals(known).values()) == {arm(0.1), arm(0.2)}
    assert set(scored(known).values()) == {1} and len(trials.planned(known)) == len(scored(known)) == 6


def test_a_proposal_gives_way_to_a_later_one_that_was_quicker():
    trials = trials_of(config(search=2))
    trials.enqueue([Job(0, 0, 0, proposal=1), Job(0, 0, 0, proposal=2)])

    def slow(job):
        other = trials.study.ask()  # another worker claims, draws the same and looks around before this one is done
        other.set_user_attr("arm", key_of(SAME[0]))
        other.set_user_attr("drawn", SAME[1])
        return SAME

    trials._propose = slow
    trials.run_one(raising(AssertionError("trained twice")), ())
    known = trials.all()
    assert known[0].user_attrs["duplicate_of"] == 1 and known[1].state == TrialState.RUNNING
    assert proposals(known) == {2: arm(0.1)}
    assert [trial.number for trial in known] == [0, 1]  # what follows from the arm is left to the other


def test_a_proposal_that_ended_with_an_error_keeps_its_arm():
    trials = started(config(grid=SPACE, search=2))
    broken = []

    def function(job, number):
        if job.proposal == 1 and len(broken) < 2:
            broken.append(job.arm)
            raise OSError("gone")
        return dice(job, number)

    for _ in range(2):
        with pytest.raises(OSError):
            run_all(trials, function)
    known = run_all(trials, function)
    assert broken[0] == broken[1] == proposals(known)[1]
    assert len({key for key, *_ in scored(known)}) == 3
    assert set(scored(known).values()) == {1} and len(trials.planned(known)) == len(scored(known)) == 6


def test_a_proposal_whose_worker_died_keeps_its_arm():
    trials = started(config(grid=SPACE, search=1))
    died = []

    def function(job, number):
        if job.proposal and not died:
            died.append(job.arm)
            trials.study.tell(number, state=TrialState.FAIL)
            failed = trials.all()[number]
            optuna.storages.RetryHeartbeatStaleTrialCallback()(trials.study, failed)
        return dice(job, number)

    known = run_all(trials, function)
    assert {key for key, *_ in scored(known)} == {NONE, died[0]}
    assert set(scored(known).values()) == {1}


def test_a_search_that_cannot_propose_ends_the_worker_and_is_tried_three_times():
    trials = trials_of(config(search=1))
    trials._propose = lambda job: 1 / 0
    trials.enqueue([Job(0, 0, 0, proposal=1)])
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            trials.run_one(dice, ())
        trials.enqueue([job for job in trials.missing(trials.all()) if job.proposal])
    assert [trial.state for trial in trials.all()] == [TrialState.FAIL] * 3
    assert not any(job.proposal for job in trials.missing(trials.all()))


def pruning(scores):
    """A search whose proposals' first folds have these scores, and all others 0.5."""

    def function(job, number):
        return (scores[job.proposal - 1] if job.proposal else 0.5), {}

    trials = started(config(grid=SPACE, search=len(scores), prune=True))
    return trials, run_all(trials, function)


def test_pruning_drops_arms_whose_first_fold_is_below_the_others_median():
    trials, known = pruning((0.5, 0.6, 0.4, 0.7, 0.54, 0.56))
    arms = proposals(known)
    # Four others are there for the fifth (0.54 < 0.55) and the sixth (0.56 > the median of five, 0.54).
    dropped = [trial.user_attrs["proposal"] for trial in first_trainings(known) if is_pruned(trial)]
    assert dropped == [5]
    counts = Counter(key for key, *_ in scored(known))
    assert counts == {NONE: 2, arms[5]: 1, **{arms[number]: 2 for number in (1, 2, 3, 4, 6)}}
    assert len(trials.planned(known)) == len(scored(known)) == 13


def test_without_pruning_the_worst_arm_has_every_fold():
    def function(job, number):
        return (0.1 if job.proposal == 6 else 0.5), {}

    known = run_all(started(config(grid=SPACE, search=6)), function)
    assert {count for count in Counter(key for key, *_ in scored(known)).values()} == {2}


def test_a_failed_first_fold_ends_an_arm_only_where_arms_are_pruned():
    def function(job, number):
        if job.proposal:
            raise Diverged("nan")
        return dice(job, number)

    pruned = run_all(started(config(grid=SPACE, search=1, prune=True)), function, (Diverged,))
    assert len(pruned) == 3
    whole = run_all(started(config(grid=SPACE, search=1)), function, (Diverged,))
    assert Counter(trial.state for trial in whole) == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 0.5, "high": 0.1}, "no range of 'lr'"),
        ({"low": 0.1}, "no range of 'lr'"),
        ({"low": 0.1, "high": 0.2, "middle": 1}, "no range of 'lr'"),
        ({"low": "a", "high": 0.2}, "no range of 'lr'"),
        ({"low": 0.0, "high": 0.2, "log": True}, "no range of 'lr'"),
    ],
)
def test_a_range_that_is_none_is_an_error(values, message):
    with pytest.raises(InputError, match=message):
        distributions({"lr": values})


def test_ranges_of_whole_numbers_draw_whole_numbers():
    space = distributions({"batch_size": {"low": 2, "high": 8, "step": 2}, "lr": {"low": 1e-4, "high": 1, "log": True}})
    drawn = [optuna.create_study().ask(space).params for _ in range(20)]
    assert {type(one["batch_size"]) for one in drawn} == {int} and {one["batch_size"] % 2 for one in drawn} == {0}
    assert {type(one["lr"]) for one in drawn} == {float}


def test_a_grid_of_arms_is_what_the_trials_hold():
    sweep = config(grid=COUPLED)
    known = run_all(started(sweep))
    assert {key for key, *_ in scored(known)} == set(map(key_of, arms_of(sweep)))
