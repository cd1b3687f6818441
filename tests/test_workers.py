"""Workers: what they tell, what they leave, which models they keep and rebuild, and how they end.

Most trainings here are a function that writes a file and gives the scores that a test wants.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from conftest import tiny_training
from optuna.trial import TrialState

from segdrop import sweep
from segdrop.config.arms import key_of
from segdrop.config.sweep import SweepConfig
from segdrop.errors import Diverged, InputError
from segdrop.folders.sweep import fold_runs, read_chosen
from segdrop.show.times import in_words
from segdrop.sweeps import workers
from segdrop.sweeps.collecting import results
from segdrop.sweeps.comparing import answer
from segdrop.sweeps.outcome import choose, leading, models_lacking, remove_models
from segdrop.sweeps.state import open_or_start
from segdrop.sweeps.trials import Job, is_score
from segdrop.sweeps.workers import Progress, Worker, count_workers, run_workers
from segdrop.training import folds

SPATIAL = {"encoder_dropout": [0.2], "dropout_kind": ["spatial"]}
PLACES = {
    Job(repeat, fold, seed).training_seed: (repeat, fold, seed)
    for repeat in range(3)
    for fold in range(2)
    for seed in (0, 1)
}


def config(data, **fields):
    return SweepConfig(tiny_training(data, batch_size=1), **{"grid": SPATIAL, "folds": 2, **fields})


@contextlib.contextmanager
def starting(folder):
    """Starts or opens sweeps in a folder; no network is built, nor forgotten."""

    def start(sweep):
        return open_or_start(folder / "sweep", sweep, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segdrop.training.building.build_model", lambda *arguments: None)
        patch.setattr(keras.backend, "clear_session", lambda: None)
        yield start


@pytest.fixture
def start(tmp_path):
    with starting(tmp_path) as start:
        yield start


def trained(monkeypatch, dice=lambda rate, repeat, fold, seed: 0.5 + rate):
    """Replace the training by a score; returns what is trained from now on."""
    done = []

    def train_fold(config, run_dir, dataset, split, precision, weights):
        repeat, fold, seed = PLACES[config.seed]
        done.append((config.encoder_dropout, repeat, fold, seed))
        run_dir.mkdir(parents=True)
        value = dice(config.encoder_dropout, repeat, fold, seed)
        (run_dir / "model.keras").write_text(f"{done[-1]}")
        return {
            **dict.fromkeys(("dice", "iou", "train_dice", "ece", "ece_foreground", "brier"), value),
            "best_epoch": 1,
            "epochs": 3,
            "train_images": len(split["train"]),
            "val_images": len(split["val"]),
            "device": "none",
        }

    monkeypatch.setattr("segdrop.training.folds.train_fold", train_fold)
    return done


def models(state):
    return {path.read_text() for path in state.folder.glob("trainings/*/model.keras")}


@pytest.fixture(scope="module")
def whole(cells, tmp_path_factory):
    """A sweep of two repeats and two seeds: its state, what its trainings were given, and what was told."""
    seen, told = {}, io.StringIO()
    with starting(tmp_path_factory.mktemp("whole")) as start, pytest.MonkeyPatch.context() as patch:
        trained(patch)
        pretend = folds.train_fold

        def train_fold(config, run_dir, dataset, split, precision, weights):
            names = {part: tuple(dataset.ids[i] for i in split[part]) for part in split}
            seen.setdefault(PLACES[config.seed], []).append((config.encoder_dropout, names, precision, weights))
            return pretend(config, run_dir, dataset, split, precision, weights)

        patch.setattr("segdrop.training.folds.train_fold", train_fold)
        state = start(config(cells, repeats=2, seeds=(0, 1)))
        with contextlib.redirect_stdout(told):
            Worker(state).work()
        yield state, seen, told.getvalue()


def test_every_training_has_its_own_folds_and_seed_and_all_arms_the_same(whole):
    _, seen, _ = whole
    inside = {f"cell_{i}" for i in range(6)}  # the last two are the given split's test images
    assert len(seen) == 8
    for arms in seen.values():
        assert [rate for rate, *_ in arms] == [0.0, 0.2]
        assert arms[0][1:] == arms[1][1:]
        _, split, precision, weights = arms[0]
        assert set(split["train"]) | set(split["val"]) == inside and split["test"] == ()
        assert len(split["train"]) == len(split["val"]) == 3
        assert (precision, weights) == ("off", "random")
    held_out = {place: arms[0][1]["val"] for place, arms in seen.items()}
    assert held_out[0, 0, 0] == held_out[0, 0, 1] and set(held_out[0, 0, 0]) | set(held_out[0, 1, 0]) == inside
    assert held_out[0, 0, 0] not in (held_out[1, 0, 0], held_out[1, 1, 0])


def test_repeats_and_seeds_are_named_where_there_are_several(whole):
    *_, told = whole
    assert "  16 of 16  spatial 0.2, fold 2 of 2, repeat 2, seed 1: Dice" in told


def test_only_the_chosen_arms_models_of_the_first_repeat_and_seed_are_left(whole):
    state, *_ = whole
    assert choose(state)
    remove_models(state)
    expected = ["(0.2, 0, 0, 0)", "(0.2, 0, 1, 0)"]
    assert models(state) == set(expected)
    assert [(run / "model.keras").read_text() for run in fold_runs(state.folder)] == expected


def test_each_training_is_told_with_its_score_and_the_time_left(start, cells, monkeypatch, capsys):
    trained(monkeypatch)
    Worker(start(config(cells))).work()
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s", "? s", line) for line in lines] == [
        "   1 of 4  none, fold 1 of 2: Dice 0.5000 in epoch 2 of 3, ? s; about ? s left",
        "   2 of 4  none, fold 2 of 2: Dice 0.5000 in epoch 2 of 3, ? s; about ? s left",
        "   3 of 4  spatial 0.2, fold 1 of 2: Dice 0.7000 in epoch 2 of 3, ? s; about ? s left",
        "   4 of 4  spatial 0.2, fold 2 of 2: Dice 0.7000 in epoch 2 of 3, ? s",
    ]


def test_trainings_that_have_ended_since_the_last_look_are_counted_one_by_one(start, cells, monkeypatch, capsys):
    trained(monkeypatch)
    state = start(config(cells))
    worker = Worker(state)
    for _ in range(2):
        state.trials.run_one(worker._train, ())
    worker.progress.tell(state.trials.all())
    assert [line.split("  none")[0] for line in capsys.readouterr().out.splitlines()] == ["   1 of 4", "   2 of 4"]


def test_the_time_left_is_that_of_the_trainings_so_far(start, cells, monkeypatch, capsys):
    trained(monkeypatch)
    state = start(config(cells))
    worker = Worker(state)
    worker.progress.started -= 1200
    state.trials.run_one(worker._train, ())
    worker.progress.tell(state.trials.all())
    assert "; about 60 min left" in capsys.readouterr().out  # three more at 20 minutes


def test_what_an_earlier_call_has_done_is_one_line(start, cells, monkeypatch, capsys):
    done = trained(monkeypatch)
    state = start(config(cells))
    for _ in range(3):
        state.trials.run_one(Worker(state)._train, ())
    capsys.readouterr()
    Worker(start(config(cells))).work()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 of 4 trainings were done before."
    assert len(lines) == 2 and lines[1].startswith("   4 of 4  spatial 0.2, fold 2 of 2:")
    assert len(done) == 4


def test_what_diverges_or_has_no_score_is_told_and_recorded_and_the_rest_is_done(start, cells, monkeypatch, capsys):
    def dice(rate, repeat, fold, seed):
        if rate and fold == 0:
            raise Diverged("The loss became nan.")
        return None if rate else 0.5

    trained(monkeypatch, dice)
    state = start(config(cells))
    Worker(state).work()
    told = capsys.readouterr().out
    assert "   failed  spatial 0.2, fold 1 of 2: The loss became nan." in told
    assert "   failed  spatial 0.2, fold 2 of 2: its score is undefined" in told
    found = answer(results(state))
    assert (found.trained, len(found.failures), found.expected) == (2, 2, 4)
    assert choose(state) and read_chosen(state.folder)["arm"] == "none"


def test_an_error_ends_the_worker_with_its_trial_as_failed(start, cells, monkeypatch):
    def dice(rate, repeat, fold, seed):
        raise InputError("An image cannot be read.")

    done = trained(monkeypatch, dice)
    state = start(config(cells))
    with pytest.raises(InputError, match="cannot be read"):
        Worker(state).work()
    states = [trial.state for trial in state.trials.all()]
    assert states == [TrialState.FAIL] + [TrialState.WAITING] * 3 and len(done) == 1
    assert not choose(state)


def test_an_unproposed_arm_is_told_as_such(start, cells, capsys):
    state = start(config(cells, search=1, grid={"encoder_dropout": [0.2, 0.3], "dropout_kind": ["spatial"]}))
    number = next(trial.number for trial in state.trials.all() if "proposal" in trial.user_attrs)
    progress = Progress(state)
    trial = state.trials.all()[number]._trial_id
    state.trials.study._storage.set_trial_state_values(trial, TrialState.FAIL)
    progress.tell(state.trials.all())
    assert "an arm not yet proposed, fold 1 of 2: its worker was stopped or died" in capsys.readouterr().out


def test_of_equal_arms_the_folder_and_the_answer_choose_the_same(start, cells, monkeypatch):
    """The same four scores in another order: added up one by one they differ in the last bit."""
    scores = {0.0: (0.4, 0.3, 0.2, 0.1), 0.2: (0.1, 0.2, 0.3, 0.4)}
    assert np.mean(scores[0.0]) < np.mean(scores[0.2])
    trained(monkeypatch, lambda rate, repeat, fold, seed: scores[rate][2 * repeat + fold])
    state = start(config(cells, repeats=2))
    Worker(state).work()
    assert choose(state)
    found = answer(results(state))
    assert read_chosen(state.folder)["arm"] == found.arms[found.chosen].arm.name == "none"


def test_a_beaten_arms_models_go_while_others_train(start, cells, monkeypatch):
    trained(monkeypatch, lambda rate, *place: 0.5 + rate)
    state = start(config(cells, grid={**SPATIAL, "encoder_dropout": [0.2, 0.1]}))
    worker = Worker(state)
    for _ in range(5):
        state.trials.run_one(worker._train, ())
    assert models(state) == {"(0.2, 0, 0, 0)", "(0.2, 0, 1, 0)", "(0.1, 0, 0, 0)"}


def test_models_of_an_arm_with_a_failed_fold_are_removed(start, cells, monkeypatch):
    def dice(rate, repeat, fold, seed):
        if rate and fold:
            raise Diverged("The loss became nan.")
        return 0.5 + rate

    trained(monkeypatch, dice)
    state = start(config(cells))
    Worker(state).work()
    remove_models(state)
    assert models(state) == {"(0.0, 0, 0, 0)", "(0.0, 0, 1, 0)"}


def test_models_of_a_pruned_arm_are_removed(start, cells, monkeypatch):
    trained(monkeypatch)
    space = {"encoder_dropout": {"low": 0.1, "high": 0.5}, "dropout_kind": ["spatial"]}
    state = start(config(cells, grid=space, search=5, prune=True))
    Worker(state).work()
    assert [t.user_attrs["proposal"] for t in state.trials.all() if t.user_attrs.get("pruned")] == [5]
    assert choose(state)
    remove_models(state)
    rate = read_chosen(state.folder)["changes"]["encoder_dropout"]
    assert models(state) == {f"({rate}, 0, {fold}, 0)" for fold in (0, 1)}


def swinging(rate, repeat, fold, seed):
    """Dropout wins the first repeat, loses the mean of two, and wins that of three."""
    return 0.5 + (0.1, -0.3, 0.5)[repeat] * bool(rate)


def test_more_repeats_choose_again_and_rebuild_what_was_removed(start, cells, monkeypatch):
    done = trained(monkeypatch, swinging)
    chosen = []
    for repeats in (1, 2, 3):
        state = start(config(cells, repeats=repeats))
        Worker(state).work()
        assert choose(state)
        remove_models(state)
        chosen.append(read_chosen(state.folder)["arm"])
        rate = 0.0 if repeats == 2 else 0.2
        assert models(state) == {f"({rate}, 0, {fold}, 0)" for fold in (0, 1)}
        assert [(run / "model.keras").is_file() for run in fold_runs(state.folder)] == [True, True]
    assert chosen == ["spatial 0.2", "none", "spatial 0.2"]
    assert len(done) == 12 + 2 + 2  # each training once, and two rebuilt after each turn
    found = answer(results(state))
    assert (found.trained, found.expected) == (12, 12)


def test_a_model_rebuilt_twice_is_rebuilt_again(start, cells, monkeypatch):
    trained(monkeypatch)
    state = start(config(cells))
    Worker(state).work()
    for _ in range(2):
        (fold_of(state, 0) / "model.keras").unlink()
        assert not choose(state)
        Worker(state).work()
        assert choose(state) and models(state) >= {"(0.2, 0, 0, 0)", "(0.2, 0, 1, 0)"}


def fold_of(state, fold):
    arm, _ = leading(state, state.trials.all())
    number = next(t.number for t in state.trials.all() if is_score(t) and Job.of(t) == Job(0, fold, 0, key_of(arm)))
    return state.folder / f"trainings/{number:05d}"


def test_two_workers_that_find_a_model_lacking_rebuild_it_once(start, cells, monkeypatch):
    done = trained(monkeypatch)
    state = start(config(cells))
    Worker(state).work()
    (fold_of(state, 0) / "model.keras").unlink()
    lacking = models_lacking(state)
    state.trials.enqueue([*lacking, *lacking])
    Worker(state).work()
    assert len(done) == 4 + 1
    assert [trial.state for trial in state.trials.all()[4:]] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_model_that_cannot_be_rebuilt_does_not_keep_the_workers(start, cells, monkeypatch):
    trained(monkeypatch)
    state = start(config(cells))
    Worker(state).work()
    (fold_of(state, 0) / "model.keras").unlink()

    def dice(*place):
        raise MemoryError

    trained(monkeypatch, dice)
    Worker(state).work()
    assert models_lacking(state) == []
    assert answer(results(state)).failures == []  # the training itself has its score


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (600, "10 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")],
)
def test_times_are_told_in_words(seconds, words):
    assert in_words(seconds) == words


def test_the_number_of_workers_is_checked():
    assert count_workers(3) == 3
    assert count_workers(None) >= 1
    with pytest.raises(InputError, match="`workers` must be a whole number of at least 1"):
        count_workers(0)


def stub(monkeypatch, code):
    """Run `code` in the worker processes, with their arguments, instead of the worker."""
    popen = subprocess.Popen

    def start(arguments, **options):
        assert arguments[1:3] == ["-m", "segdrop.sweeps.workers"]
        return popen([sys.executable, "-c", code, *arguments[3:]], **options)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    monkeypatch.setattr(workers, "_POLL", 0.1)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell which cores a process has")
def test_workers_share_the_cores_and_get_the_storage_in_secret(start, cells, monkeypatch):
    stub(
        monkeypatch,
        "import json, os, sys; names = 'SEGDROP_STORAGE TF_NUM_INTRAOP_THREADS OMP_NUM_THREADS'.split();"
        "print(json.dumps([sys.argv[1:], [os.environ[name] for name in names]]))",
    )
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda process: {1, 2, 3, 5, 8})
    state = start(config(cells))
    state.storage = "postgresql://me:secret@here/db"
    run_workers(state, 2)
    told = [json.loads(path.read_text()) for path in sorted((state.folder / "logs").iterdir())]
    assert [arguments for arguments, _ in told] == [
        [str(state.folder), str(cells), str(state.config.train.cache_mb), cores] for cores in ("1,2,3", "5,8")
    ]
    assert [environment for _, environment in told] == [["postgresql://me:secret@here/db", n, n] for n in ("3", "2")]


def test_workers_find_the_modules_that_this_process_finds(start, cells, monkeypatch, tmp_path):
    (tmp_path / "only_here.py").write_text("told = 'found'")
    monkeypatch.syspath_prepend(tmp_path)
    stub(monkeypatch, "import only_here; print(only_here.told)")
    state = start(config(cells))
    run_workers(state, 1)
    assert [path.read_text() for path in (state.folder / "logs").iterdir()] == ["found\n"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('at last', file=sys.stderr); sys.exit('It is broken.')", "It is broken"),
        ("import os, signal; print('1 of 4', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("import sys; sys.exit(3)", "it says nothing"),
    ],
)
def test_when_all_workers_end_with_an_error_the_reason_and_the_logs_are_told(code, reason, start, cells, monkeypatch):
    stub(monkeypatch, code)
    state = start(config(cells))
    with pytest.raises(InputError, match=rf"All workers ended with an error: .*{reason}; the logs are in .*logs\.$"):
        run_workers(state, 2)


def test_one_worker_that_ends_with_an_error_is_told_with_its_log(start, cells, monkeypatch, capsys):
    # Whoever takes the place first is the one that fails.
    stub(monkeypatch, "import sys, pathlib; pathlib.Path(sys.argv[1], 'taken').mkdir(); print('done')")
    state = start(config(cells))
    run_workers(state, 2)
    told = capsys.readouterr().out
    log = next(path for path in (state.folder / "logs").iterdir() if "FileExistsError" in path.read_text())
    assert told.count("A worker ended with an error") == 1
    assert "FileExistsError" in told and f"(all of it is in {log})" in told


@pytest.mark.parametrize(("heeds", "code"), [(True, 7), (False, -signal.SIGKILL)])
def test_a_worker_is_asked_to_end_and_killed_if_it_does_not(heeds, code, monkeypatch):
    monkeypatch.setattr(workers, "_GRACE", 1.0)
    script = f"""
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: {heeds} and sys.exit(7))
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        workers._end([process])
        assert process.returncode == code


def test_a_worker_ends_with_the_process_that_has_started_it():
    script = """
        import segdrop.sweeps.workers as workers, time
        class Working:
            def __init__(self, state): pass
            def work(self):
                print("working", flush=True)
                while True: time.sleep(0.01)
        class State:
            def change_training(self, **fields): pass
        workers.Worker, workers.open_state = Working, lambda *_: State()
        raise SystemExit(workers._main("folder", "data", "0", ""))
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], **pipes) as process:
        assert process.stdout.readline() == b"working\n"
        process.stdin.close()  # as the system does when the other end dies
        assert process.wait(timeout=300) == 143
        assert process.stderr.read() == b"It was asked to end.\n"


@pytest.fixture(scope="module")
def diverging(cells, tmp_path_factory):
    """A sweep of real trainings by two processes, where one learning rate is no number that anything survives."""
    folder = tmp_path_factory.mktemp("sweeps") / "diverging"
    return folder, sweep(folder, config(cells, grid={"lr": [1e30], **SPATIAL}), workers=2)


@pytest.mark.slow
def test_two_processes_finish_a_sweep_whose_arms_diverge(diverging):
    folder, found = diverging
    assert (found.trained, len(found.failures), found.expected) == (2, 4, 6)
    assert {found.arms[one.arm].arm.name for one in found.failures} == {"none, lr=1e+30", "spatial 0.2, lr=1e+30"}
    assert all("The weights are no longer finite" in one.reason for one in found.failures)
    assert len(list((folder / "logs").iterdir())) == 2


@pytest.mark.slow
def test_the_answer_says_that_arms_have_failed(diverging):
    folder, _ = diverging
    text = (folder / "answer.md").read_text()
    assert "2 of 6 trainings are done, 4 failed." in text
    assert "## Failed trainings" in text and "The weights are no longer finite" in text
    assert read_chosen(folder)["arm"] == "none"


@pytest.mark.slow
def test_workers_whose_data_are_gone_say_so(start, cells, tmp_path):
    data = shutil.copytree(cells, tmp_path / "data")
    state = start(config(data))
    shutil.rmtree(data)
    with pytest.raises(InputError, match="All workers ended with an error: .*data"):
        run_workers(state, 2)
