"""A sweep of real trainings on a real PostgreSQL server: workers are killed and the server goes away in the middle."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import draw_cells, tiny_training, write_pairs
from optuna.trial import TrialState

from segdrop.config.sweep import SweepConfig
from segdrop.folders.sweep import fold_runs
from segdrop.sweeps.collecting import results
from segdrop.sweeps.comparing import answer
from segdrop.sweeps.outcome import choose, remove_models, scored_by_training
from segdrop.sweeps.state import open_or_start
from segdrop.sweeps.storage import open_storage
from segdrop.sweeps.trials import Trials, is_score

pytestmark = pytest.mark.slow
# One thread each: sums are in the same order then, whatever else the machine does.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
WORKER = """
import sys
from pathlib import Path

folder, storage, tests = sys.argv[1:]
sys.path.insert(0, tests)

import segdrop.training.building
from segdrop.sweeps.state import open_state
from segdrop.sweeps.workers import Worker
from standin import build_small_unet

segdrop.training.building.build_unet = build_small_unet
Worker(open_state(Path(folder), storage or None, heartbeat=1, grace=4)).work()
"""


def config(data, rates, seeds):
    grid = {"encoder_dropout": rates, "dropout_kind": ["spatial"]}
    return SweepConfig(tiny_training(data, batch_size=2), grid, folds=2, seeds=seeds, reference_seeds=1, hold_out=False)


def worker(folder, storage, log):
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), storage or "", str(Path(__file__).parent)],
            env={**os.environ, **ONE_THREAD},
            stdout=file,
            stderr=file,
        )


def wait_until(condition, seconds=900):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def running(state):
    """Trials whose training has begun, by the process that does it."""
    return {
        int(trial.user_attrs["worker"].split()[-1]): trial.number
        for trial in state.trials.all()
        if trial.state == TrialState.RUNNING and (state.folder / f"trainings/{trial.number:05d}/config.json").is_file()
    }


def kill_two(workers, state):
    """Kill two workers in the middle of their trainings, which are short: all stand still until it is done."""
    while True:
        for process in workers:
            process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)  # what they have told the server takes effect
        found = dict(list(running(state).items())[:2])
        if len(found) == 2:
            for process in workers:
                process.send_signal(signal.SIGKILL if process.pid in found else signal.SIGCONT)
            return found
        for process in workers:
            process.send_signal(signal.SIGCONT)
        time.sleep(0.5)


def by_training(state):
    return {job: trial.value for job, trial in scored_by_training(state.trials.all()).items()}


@pytest.fixture(scope="module")
def swept(postgresql, tmp_path_factory):
    """24 trainings by four workers, two of them killed; the server is away for a while; and one process's own sweep."""
    folder = tmp_path_factory.mktemp("sweeps")
    data = write_pairs(folder / "data", {f"c{i}": draw_cells(np.random.default_rng(i), 32) for i in range(8)})
    url = postgresql.create("sweep")
    rates = [0.1, 0.2, 0.3, 0.4, 0.5]
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "segdrop.sweeps.state.open_storage", lambda *given: opened.append(open_storage(*given)) or opened[-1]
        )
        shared = open_or_start(folder / "shared", config(data, rates, (0, 1)), url, heartbeat=1, grace=4)
        alone = open_or_start(folder / "alone", config(data, rates[1:2], (0,)), None)
    single = worker(alone.folder, None, folder / "alone.log")
    workers = [worker(shared.folder, url, folder / f"shared{i}.log") for i in range(4)]
    wait_until(lambda: len(by_training(shared)) >= 4)
    killed = kill_two(workers, shared)
    wait_until(lambda: len(by_training(shared)) >= 12)
    postgresql.stop("immediate")
    time.sleep(8)
    postgresql.start()
    codes = {process.pid: process.wait(900) for process in workers}
    assert single.wait(900) == 0, (folder / "alone.log").read_text()
    yield shared, alone, killed, codes
    for database in opened:
        database.engine.dispose()


def test_the_workers_that_are_left_finish_every_training(swept):
    shared, _, killed, codes = swept
    assert sorted(codes.values()) == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert {pid for pid, code in codes.items() if code} == set(killed)
    places = {(0, fold, seed) for fold in (0, 1) for seed in (0, 1)}
    arms = {arm for arm, *_ in by_training(shared)}
    assert len(arms) == 6 and set(by_training(shared)) == {(arm, *place) for arm in arms for place in places}


def test_nothing_is_left_waiting_or_running_and_nothing_is_run_twice_to_its_end(swept):
    shared, *_ = swept
    known = shared.trials.all()
    assert Counter(trial.state for trial in known) == {TrialState.COMPLETE: 24, TrialState.FAIL: 2}
    assert sum(map(is_score, known)) == 24 and shared.trials.missing(known) == []


def test_the_trainings_of_killed_workers_are_run_again_by_others(swept):
    shared, _, killed, _ = swept
    known = shared.trials.all()
    for pid, number in killed.items():
        failed = known[number]
        assert failed.state == TrialState.FAIL and failed.user_attrs["worker"].endswith(f"process {pid}")
        again = [trial for trial in known if trial.system_attrs.get("failed_trial") == number]
        assert [trial.state for trial in again] == [TrialState.COMPLETE]
        assert f"{socket.gethostname()}, process {pid}" != again[0].user_attrs["worker"]


def test_the_scores_are_those_of_a_single_process(swept):
    shared, alone, *_ = swept
    expected, found = (scored_by_training(state.trials.all()) for state in (alone, shared))
    assert len(expected) == 4
    for job, trial in expected.items():
        assert found[job].value == trial.value
        # Of a network that calls everything foreground the Dice tells little; the Brier score moves with every weight.
        assert found[job].user_attrs["scores"] == trial.user_attrs["scores"]
    assert len({trial.user_attrs["scores"]["brier"] for trial in expected.values()}) == 4


def test_the_answer_counts_every_training_once_and_the_chosen_models_are_there(swept):
    shared, *_ = swept
    found = answer(results(shared))
    assert (found.trained, found.expected, found.failures) == (24, 24, [])
    assert choose(shared)
    remove_models(shared)
    left = sorted(path.parent for path in shared.folder.glob("trainings/*/model.keras"))
    assert left == sorted(fold_runs(shared.folder)) and len(left) == 2


def test_an_outage_longer_than_its_workers_grace_is_waited_out(postgresql):
    url = postgresql.create("outage")
    sweep = config("nowhere", [0.1], (0,))
    database, watching = open_storage(url, 1, 4), open_storage(url, 1, 4)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    trials = Trials(optuna.create_study(study_name="outage", storage=database, direction="maximize"), sweep)
    watcher = Trials(optuna.load_study(study_name="outage", storage=watching), sweep)
    trials.enqueue(trials.missing([]))
    back = threading.Timer(15, postgresql.start)

    def struck(job, number):
        if number == 0:
            postgresql.stop("immediate")
            back.start()
        watcher.free_stale()  # waits for the server, too
        return 0.5, {"scores": {}}

    for _ in range(4):
        trials.run_one(struck, ())
    back.join()
    assert [trial.state for trial in trials.all()] == [TrialState.COMPLETE] * 4
    for storage in (database, watching):
        storage.engine.dispose()
