"""Workers: processes that train what is waiting in a sweep, on one machine or on many."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.exceptions import TrialPruned
from optuna.trial import FrozenTrial, TrialState

from ..config.arms import name_of
from ..config.checks import check_whole
from ..config.train import TrainConfig
from ..data.dataset import Dataset
from ..errors import Diverged, InputError
from ..folders.run import MODEL
from ..folders.sweep import check_data, read_folds, training_dir
from ..interrupts import check, heeding, held
from ..printing import say
from ..show.times import in_words
from .outcome import models_lacking, remove_models, scored_by_training
from .state import State, open_state
from .trials import Job

_POLL = 2.0  # seconds between looks at what the other workers do
# In the workers' environment: an address may hold a password, and arguments are in every list of processes.
_STORAGE = "SEGDROP_STORAGE"
_GRACE = 20.0  # seconds for a worker to end when it is asked to, before it is killed
LOGS = "logs"


class Worker:
    """Trains what is waiting, one training after the other, in this process."""

    def __init__(self, state: State):
        with held():  # raised from within this import, a request can end in a segmentation fault
            import tensorflow as tf

        self.state, self.progress = state, Progress(state)
        self.failures = (Diverged, tf.errors.ResourceExhaustedError, MemoryError)
        self.datasets: dict[tuple, Dataset] = {}

    def work(self) -> None:
        """Until nothing is waiting or running, here or elsewhere; stale trials are freed meanwhile."""
        trials = self.state.trials
        while True:
            check()
            trials.free_stale()
            known = trials.all()
            self.progress.tell(known)
            if any(trial.state == TrialState.WAITING for trial in known):
                trials.run_one(self._train, self.failures)
            elif missing := trials.missing(known):
                trials.enqueue(missing)
            elif any(trial.state == TrialState.RUNNING for trial in known):
                time.sleep(_POLL)
            elif lacking := models_lacking(self.state):
                trials.enqueue(lacking)
            else:
                return

    def _train(self, job: Job, number: int) -> tuple[float, dict]:
        """Train a job in the folder of its trial."""
        import keras

        from ..training.building import find_weights
        from ..training.folds import train_fold

        state, started = self.state, time.monotonic()
        changes = json.loads(job.arm)
        config = dataclasses.replace(state.arm_config(changes), seed=job.training_seed)
        dataset = self._dataset(config)
        repeats, _, _ = read_folds(state.folder, dataset)
        held_out = repeats[job.repeat][job.fold]
        inside = np.sort(np.concatenate(repeats[job.repeat]))
        split = {"train": np.setdiff1d(inside, held_out), "val": np.sort(held_out), "test": np.empty(0, int)}
        # Where a machine lacks the weights that the others have, this is an error and no training from random ones.
        wanted = "none" if state.record.random_weights else "imagenet"
        automatic = config.encoder_weights == "auto" and not config.encoder_from_run
        weights = find_weights(dataclasses.replace(config, encoder_weights=wanted) if automatic else config)
        run_dir = training_dir(state.folder, number)
        original = run_dir if job.rebuilt is None else training_dir(state.folder, job.rebuilt)
        if (original / MODEL).is_file() and job.rebuilt is not None:
            raise TrialPruned("another worker has rebuilt the model")
        shutil.rmtree(run_dir, ignore_errors=True)
        keras.backend.clear_session()  # the networks before it, which refer to themselves
        gc.collect()
        scores = train_fold(config, run_dir, dataset, split, state.precision_of(config), weights)
        if job.rebuilt is not None:
            os.replace(run_dir / MODEL, original / MODEL)
            shutil.rmtree(run_dir)
        elif job.repeat or job.seed != state.config.seeds[0]:
            (run_dir / MODEL).unlink()  # an ensemble takes one model of each fold
        remove_models(state)
        attributes = {"scores": scores, "seconds": round(time.monotonic() - started, 3)}
        return scores["dice"], attributes

    def _dataset(self, config: TrainConfig) -> Dataset:
        """The data set as this arm sees it; arms differ in the intensity rule at most."""
        from ..data.opening import open_configured

        key = (config.intensity, config.intensity_percentiles, config.intensity_window)
        if key not in self.datasets:
            self.datasets.clear()
            self.datasets[key] = open_configured(config)
            check_data(self.state.record, self.datasets[key], self.state.folder)
        return self.datasets[key]


class Progress:
    """Tells on the terminal each training that is finished, here or elsewhere, and how many there are."""

    def __init__(self, state: State):
        self.state, self.started, self.told = state, time.monotonic(), set()
        if state.record.random_weights:
            say("The encoder starts from RANDOM weights: no ImageNet weights could be had.")
        # What an earlier call has finished is no news.
        self.before = {trial.number for trial in state.trials.all() if trial.state.is_finished()}
        if self.before:
            done, planned = self._counts(state.trials.all())
            say(f"{done} of {planned} trainings were done before.")

    def tell(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            if trial.number in self.before | self.told or not trial.state.is_finished():
                continue
            self.told.add(trial.number)
            attributes = trial.user_attrs
            told = self._what(trial)
            if trial.state == TrialState.COMPLETE and "rebuilt" not in attributes:
                scores = attributes["scores"]
                done, planned = self._counts(trials)
                say(
                    f"{done:4} of {planned}  {told}: Dice {scores['dice']:.4f} in epoch {scores['best_epoch'] + 1} of "
                    f"{scores['epochs']}, {attributes['seconds']:.0f} s{self._remaining(done, planned)}"
                )
            elif trial.state == TrialState.FAIL:
                reason = attributes.get("failure") or attributes.get("error") or "its worker was stopped or died"
                say(f"   failed  {told}: {reason}")

    def _what(self, trial: FrozenTrial) -> str:
        config, attributes = self.state.config, trial.user_attrs
        words = [f"fold {attributes['fold'] + 1} of {config.folds}"]
        if config.repeats > 1:
            words.append(f"repeat {attributes['repeat'] + 1}")
        if len(config.seeds) > 1 or attributes["seed"] not in config.seeds:
            words.append(f"seed {attributes['seed']}")
        arm = name_of(json.loads(attributes["arm"])) if "arm" in attributes else "an arm not yet proposed"
        return ", ".join([arm, *words])

    def _counts(self, trials: Sequence[FrozenTrial]) -> tuple[int, int]:
        known = [trial for trial in trials if trial.number in self.before | self.told]
        return len(scored_by_training(known)), len(self.state.trials.planned(trials))

    def _remaining(self, done: int, planned: int) -> str:
        if done >= planned:
            return ""
        seconds = (time.monotonic() - self.started) / max(1, len(self.told)) * (planned - done)
        return f"; about {in_words(seconds)} left"


def count_workers(workers: int | None) -> int:
    """How many processes to train in: as said, else one for each GPU, else one."""
    if workers is not None:
        return check_whole(workers, "workers")
    import tensorflow as tf

    return max(1, len(tf.config.list_physical_devices("GPU")))


def run_workers(state: State, count: int) -> None:
    """Run workers in processes of their own until they leave; each has its share of the cores, and a GPU if there are.

    Raises:
        InputError: all have ended with an error; their logs are in the sweep's folder.
    """
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    logs = state.folder / LOGS
    logs.mkdir(exist_ok=True)
    train = state.config.train
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    shares = [[int(core) for core in part] or cores for part in np.array_split(cores, count)]
    processes, files = [], []
    for number, share in enumerate(shares):
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # they find the modules that this process finds
            _STORAGE: state.storage or "",
        }
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        else:
            environment["TF_NUM_INTRAOP_THREADS"] = environment["OMP_NUM_THREADS"] = str(len(share))
        path = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{number}.log"
        arguments = [str(state.folder), train.data, str(train.cache_mb), ",".join(map(str, share))]
        with path.open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "segdrop.sweeps.workers", *arguments],
                    env=environment,
                    stdin=subprocess.PIPE,  # by whose end a worker notices that this process has died
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C is for this process, which asks its workers to end
                )
            )
        files.append(path)
    progress = Progress(state)
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(_POLL)
            progress.tell(state.trials.all())
    finally:
        _end(processes)
    progress.tell(state.trials.all())
    failed = [
        (path, _reason(process.returncode, path))
        for process, path in zip(processes, files, strict=True)
        if process.returncode
    ]
    for path, reason in failed:
        say(f"A worker ended with an error: {reason} (all of it is in {path})")
    if len(failed) == count:
        raise InputError(f"All workers ended with an error: {failed[-1][1]}; the logs are in {logs}.")


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ask processes to end, and kill those that have not after a while."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return f"it was killed by signal {-code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].rstrip(".") if lines else "it says nothing"


def _main(folder: str, data: str, cache_mb: str, cores: str) -> int:
    """A worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    try:
        with heeding():
            state = open_state(Path(folder), os.environ.get(_STORAGE) or None)
            state.change_training(data=data, cache_mb=int(cache_mb))
            Worker(state).work()
    except (InputError, OSError) as error:
        say(str(error), to_stderr=True)
        return 2
    except KeyboardInterrupt:
        say("It was asked to end.", to_stderr=True)
        return 143
    return 0


def _end_with_parent() -> None:
    """Ask this process to end when the one that has started it dies, even by a kill."""
    os.read(0, 1)  # not by sys.stdin, whose lock would be held when this process ends
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
