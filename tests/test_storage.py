"""The database of a sweep's trials: claimed by one worker each, freed when it dies, and waited for when it is away.

Times are shortened: a worker is taken for dead after two seconds without a sign of life.
"""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from types import SimpleNamespace

import optuna
import psycopg
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError

from segdrop.config.sweep import SweepConfig
from segdrop.config.train import TrainConfig
from segdrop.errors import InputError
from segdrop.sweeps import storage
from segdrop.sweeps.storage import file_url, open_storage
from segdrop.sweeps.trials import Job, Trials, is_score, is_settled

pytestmark = pytest.mark.usefixtures("quiet_optuna")
CONFIG = SweepConfig(
    TrainConfig(data="nowhere"), grid={"encoder_dropout": [0.1, 0.2], "dropout_kind": ["spatial"]}, folds=10
)
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
import optuna
from segdrop.sweeps.storage import open_storage
from segdrop.sweeps.trials import Job, Trials, is_score, is_settled

url, task = sys.argv[1:]
optuna.logging.set_verbosity(optuna.logging.CRITICAL)
database = open_storage(url, heartbeat=1, grace=2)
print("open", flush=True)
sys.stdin.readline()
trials = Trials(optuna.load_study(study_name="sweep", storage=database), None)
begun = []

def function(job, number):
    begun.append(number)
    if task == "die":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)  # or one process has them all while another is not scheduled
    return 0.5, {"scores": {}}

if task == "claim and die":
    trials.study.ask()
    os.kill(os.getpid(), signal.SIGKILL)
while any(trial.state == optuna.trial.TrialState.WAITING for trial in trials.all()):
    trials.run_one(function, ())
print(json.dumps(begun))
"""


@pytest.fixture
def opened():
    """Opens storages, and closes their connections at the end."""
    databases = []

    def open_one(url):
        databases.append(open_storage(url, heartbeat=1, grace=2))
        return databases[-1]

    yield open_one
    for database in databases:
        database.engine.dispose()


@pytest.fixture
def trials(tmp_path, opened):
    """An empty sweep in a file."""
    study = optuna.create_study(study_name="sweep", storage=opened(file_url(tmp_path)), direction="maximize")
    return Trials(study, CONFIG)


def dice(job, number):
    return 0.5, {"scores": {}}


def worker(url, task):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, url, task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def another(trials, opened):
    """Another worker's view of the same trials, through connections of its own."""
    url = trials.study._storage._backend.url
    return Trials(optuna.load_study(study_name=trials.study.study_name, storage=opened(url)), CONFIG)


def claim(trials):
    """Claim a trial and send no sign of life."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trials.study.ask()


def states(trials):
    return [trial.state for trial in trials.all()]


def test_three_processes_on_one_file_run_each_training_once(tmp_path, opened):
    url = file_url(tmp_path)
    workers = [worker(url, "run") for _ in range(3)]
    assert [process.stdout.readline() for process in workers] == ["open\n"] * 3  # who makes the tables is a race too
    study = optuna.create_study(study_name="sweep", storage=opened(url), direction="maximize")
    trials = Trials(study, CONFIG)
    trials.enqueue(trials.missing([]))
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    begun = [json.loads(process.communicate()[0]) for process in workers]
    assert sorted(number for numbers in begun for number in numbers) == list(range(30))
    assert min(map(len, begun)) > 0
    known = trials.all()
    assert {trial.state for trial in known} == {TrialState.COMPLETE}
    assert set(Counter(map(Job.of, known)).values()) == {1} and len(known) == 30


def test_who_reads_that_a_trial_waits_claims_it_before_another_can_read(trials, opened, monkeypatch):
    trials.enqueue(trials.planned([])[:1])
    trial, claims = trials.all()[0]._trial_id, {}
    first, second = (another(trials, opened).study._storage._backend for _ in range(2))

    def claim(name, database):
        claims[name] = database.set_trial_state_values(trial, TrialState.RUNNING)

    rival = threading.Thread(target=claim, args=("second", second))

    def between_reading_and_writing(*arguments):
        rival.start()
        rival.join(1)

    monkeypatch.setattr(first, "check_trial_is_updatable", between_reading_and_writing)
    claim("first", first)
    rival.join()
    assert claims == {"first": True, "second": False}


@pytest.mark.parametrize("task", ["die", "claim and die"])
def test_a_killed_workers_trial_is_run_again_and_a_living_workers_is_not(task, trials, opened, monkeypatch):
    monkeypatch.setattr(storage, "_LONGEST_WAIT", 0)
    jobs = trials.planned([])[:2]
    trials.enqueue(jobs[:1])
    process = worker(trials.study._storage._backend.url, task)
    process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL
    assert states(trials) == [TrialState.RUNNING]
    trials.enqueue(jobs[1:])
    watcher, deadline = another(trials, opened), time.monotonic() + 300

    def long(job, number):
        while states(watcher)[0] == TrialState.RUNNING and time.monotonic() < deadline:
            time.sleep(0.3)
            watcher.free_stale()
        return 0.5, {}

    trials.run_one(long, ())
    assert states(trials) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.WAITING]
    trials.run_one(dice, ())
    known = trials.all()
    assert [Job.of(trial) for trial in known if is_score(trial)] == jobs[::-1]
    assert states(trials)[0] == TrialState.FAIL  # and stays in the log


def die(trials, monkeypatch):
    """A worker claims a trial and is killed, and another worker finds that out."""
    number = claim(trials)._trial_id
    with monkeypatch.context() as patch:
        patch.setattr(trials.study._storage._backend, "_get_stale_trial_ids", lambda study_id: [number])
        trials.free_stale()


def test_a_training_that_ends_its_worker_three_times_has_failed_and_the_others_go_on(trials, monkeypatch):
    jobs = trials.planned([])[:2]
    trials.enqueue(jobs[:1])
    for _ in range(storage.ATTEMPTS):
        die(trials, monkeypatch)
    trials.enqueue(jobs[1:])
    trials.run_one(dice, ())
    known = trials.all()
    assert states(trials).count(TrialState.WAITING) == 0 and is_settled(known[-2], known)
    assert Job.of(known[-2]) == jobs[0]
    assert known[-2].user_attrs["failure"] == "it ended its worker 3 times, perhaps for lack of memory"
    assert not any(job in trials.missing(known) for job in jobs)


def test_an_interruption_between_two_deaths_starts_the_count_anew(trials, monkeypatch):
    """A machine that is taken away says nothing of the training."""

    def interrupted(job, number):
        raise KeyboardInterrupt

    trials.enqueue(trials.planned([])[:1])
    for _ in range(2):
        die(trials, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trials.run_one(interrupted, ())
    for _ in range(2):
        die(trials, monkeypatch)
    assert states(trials) == [TrialState.FAIL] * 5 + [TrialState.WAITING]


def test_a_trial_must_look_stale_for_a_while(trials, monkeypatch):
    database, clock, stale = trials.study._storage._backend, SimpleNamespace(now=0.0), [7]
    monkeypatch.setattr(storage, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(database, "_stale", lambda study_id: stale)

    def found(now, looks_stale):
        clock.now, stale[:] = now, looks_stale
        return database._get_stale_trial_ids(1)

    patience = storage._LONGEST_WAIT + 2 * 1  # intervals of a second between heartbeats
    assert found(0, [7]) == found(patience - 1, [7, 8]) == []
    assert found(patience + 1, [7, 8]) == [7]
    assert found(patience + 2, [8]) == []
    assert found(patience + 3, [7, 8]) == []  # it gave a sign of life in between
    assert found(2 * patience, [7, 8]) == [8]


def test_a_worker_makes_no_trial_of_its_own(trials):
    trials.run_one(dice, ())
    assert trials.all() == []
    with pytest.raises(storage.NothingWaiting):
        claim(trials)


def test_attributes_that_cannot_be_stored_are_told_and_not_tried_for_ever(trials):
    trials.enqueue(trials.planned([])[:1])
    with pytest.raises(TypeError, match="JSON"):
        trials.run_one(lambda job, number: (0.5, {"scores": {1, 2}}), ())
    assert "JSON" in trials.all()[0].user_attrs["error"]


def test_a_worker_whose_trial_was_given_to_another_goes_on(trials, opened):
    trials.enqueue(trials.planned([])[:1])
    other = another(trials, opened)

    def silent_for_too_long(job, number):
        other.study.tell(0, state=TrialState.FAIL)
        return 0.9, {"scores": {}}

    trials.run_one(silent_for_too_long, ())
    assert [(trial.state, trial.value) for trial in trials.all()] == [(TrialState.FAIL, None)]


def test_a_repeated_end_finds_its_own_work_and_no_other(trials):
    trials.enqueue(trials.planned([])[:1])
    database, trial = trials.study._storage._backend, claim(trials)._trial_id
    for _ in range(2):  # as after a commit whose confirmation was lost
        assert database.set_trial_state_values(trial, TrialState.COMPLETE, [0.5])
    for state, values in ((TrialState.COMPLETE, [0.6]), (TrialState.FAIL, None)):
        with pytest.raises(UpdateFinishedTrialError):
            database.set_trial_state_values(trial, state, values)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "must look like postgresql://"),
        ("postgresql://me@here:port/db", "must look like postgresql://"),
        ("postgresql://me:a@secret@here:port/db", r"must look like .* got 'postgresql://me:\*\*\*@here:port/db'"),
        (
            "postgresql://me@127.0.0.1:1/db?password=secret&sslpassword=secret",
            r"password=\*\*\*&sslpassword=\*\*\* cannot",
        ),
        ("nosuchdatabase://me@here/db", "needs a driver"),
        ("sqlite:////nowhere/at/all/sweep.db", "cannot be reached: unable to open database file"),
        (
            "postgresql://me:secret@127.0.0.1:1/db",
            r"postgresql://me:\*\*\*@127.0.0.1:1/db cannot be reached: .*refused",
        ),
        ("postgresql://me@127.0.0.1:1/db?nosuchoption=1", "cannot be reached: invalid connection option"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_at_once(url, message):
    started = time.monotonic()
    with pytest.raises(InputError, match=message) as told:
        open_storage(url)
    assert time.monotonic() - started < 3
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "sweep.db").write_text("no database" * 100)
    with pytest.raises(InputError, match="cannot be reached: file is not a database"):
        open_storage(file_url(tmp_path))


def test_a_missing_driver_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"needs a driver .*pip install 'segdrop\[postgresql\]'"):
        open_storage("postgresql://me@127.0.0.1:1/db")


def test_a_server_that_does_not_answer_is_told(monkeypatch):
    assert storage._ENGINES["postgresql"]["connect_args"] == {"connect_timeout": storage.CONNECT}
    monkeypatch.setitem(storage._ENGINES["postgresql"]["connect_args"], "connect_timeout", 2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(InputError, match="cannot be reached: .*timeout"),
    ):
        open_storage(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db")


def test_a_missing_database_is_told(postgresql):
    with pytest.raises(InputError, match='cannot be reached: .*database "nosuch" does not exist'):
        open_storage(postgresql.url("nosuch"))


def test_an_outage_longer_than_the_grace_period_is_waited_out(postgresql, opened):
    database = opened(postgresql.create("outage"))
    trials = Trials(optuna.create_study(study_name="outage", storage=database, direction="maximize"), CONFIG)
    trials.enqueue(trials.planned([])[:1])
    other = another(trials, opened)

    def struck(job, number):
        postgresql.stop("immediate")
        time.sleep(4)
        postgresql.start()
        other.free_stale()  # which sees no heartbeat for longer than the grace period
        return 0.5, {"scores": {}}

    trials.run_one(struck, ())
    assert [(trial.state, trial.value) for trial in trials.all()] == [(TrialState.COMPLETE, 0.5)]


def test_what_is_done_during_an_outage_is_stored_after_it(postgresql, opened):
    database = opened(postgresql.create("struck"))
    trials = Trials(optuna.create_study(study_name="struck", storage=database, direction="maximize"), CONFIG)
    trials.enqueue(trials.planned([])[:1])

    def struck(job, number):
        postgresql.stop()
        back.start()
        return 0.5, {"scores": {"dice": 0.5}}

    back = threading.Timer(2, postgresql.start)  # while the result waits to be stored
    started = time.monotonic()
    trials.run_one(struck, ())
    back.join()
    assert time.monotonic() - started > 2
    assert [(trial.state, trial.user_attrs["scores"]) for trial in trials.all()] == [
        (TrialState.COMPLETE, {"dice": 0.5})
    ]


def away():
    return OperationalError("SELECT 1", {}, psycopg.OperationalError("connection refused"))


def test_a_database_that_stays_away_is_given_up_after_a_quarter_of_an_hour(trials, monkeypatch):
    clock, waits = SimpleNamespace(now=0.0), []

    def sleep(seconds):
        waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(storage, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))

    @storage._patiently
    def call(self):
        raise away()

    with pytest.raises(OperationalError):
        call(trials.study._storage._backend)
    assert 900 < clock.now < 900 + storage._LONGEST_WAIT
    assert max(waits) <= storage._LONGEST_WAIT and waits[0] <= 0.5 < max(waits)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (away(), True),
        (InterfaceError("SELECT 1", {}, psycopg.InterfaceError("connection is closed")), True),
        (OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked")), True),
        (OperationalError("SELECT 1", {}, sqlite3.OperationalError("no such table: trials")), False),
        (OperationalError("SELECT 1", {}, sqlite3.OperationalError("database or disk is full")), False),
        (ProgrammingError("SELECT 1", {}, psycopg.ProgrammingError("syntax error"), connection_invalidated=True), True),
        (ProgrammingError("SELECT 1", {}, psycopg.ProgrammingError("syntax error")), False),
        (IntegrityError("SELECT 1", {}, psycopg.IntegrityError("duplicate key")), False),
        (StorageInternalError("An exception is raised during the commit."), False),
        (away().orig, False),
        (ValueError("Cannot tell a FAIL trial."), False),
    ],
)
def test_only_a_database_that_is_away_or_locked_is_waited_for(error, passing):
    assert storage._is_passing(error) == passing


def test_a_cause_that_optuna_hides_is_found():
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = away()
    assert storage._is_passing(error)


def test_every_question_to_the_database_is_repeated_in_an_outage():
    """What Optuna's storages must have is repeated, or made of calls that are."""
    made_of_others = {"create_new_trial", "get_all_trials", "set_trial_param"}
    ours = set(storage.PATIENT) | set(vars(storage._Storage))
    assert BaseStorage.__abstractmethods__ - ours == made_of_others
