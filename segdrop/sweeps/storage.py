"""Where a sweep's trials are kept: Optuna's database storage, which here outlives an outage of the database."""

import contextlib
import functools
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool

from ..errors import InputError, first_line
from ..folders.sweep import ADVICE
from ..interrupts import check
from ..printing import without_passwords

HEARTBEAT, GRACE = 30, 150  # seconds between signs of life, and without one until a trial counts as stale
ATTEMPTS = 3  # of a training that ends its worker each time, by an error or a death; then it counts as failed
PATIENCE = 900  # seconds that a call waits for a database that does not answer
CONNECT = 10  # seconds until a connection that is not made counts as refused; PostgreSQL's own limit is minutes
DATABASE = "sweep.db"  # the file in a sweep's folder
_OF_WRONG_VALUES = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)
_LONGEST_WAIT = 15  # seconds between two tries
# A connection that was idle is tested before its use. SQLite's workers wait for each other's writes; its connections
# cost little, and are closed after each use rather than by chance.
_ENGINE = {"pool_pre_ping": True}
_ENGINES = {
    "postgresql": {**_ENGINE, "connect_args": {"connect_timeout": CONNECT}},
    "sqlite": {"poolclass": NullPool, "connect_args": {"timeout": 60, "isolation_level": None}},
}


class NothingWaiting(Exception):
    """No trial is waiting in the study."""


def _retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Let the trial of a dead worker be run again, but count it as failed where it has ended so many in a row."""
    deaths = len(trial.system_attrs.get("retry_history", ())) + 1
    if deaths < ATTEMPTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback()(study, trial)
        return
    reason = f"it ended its worker {deaths} times, perhaps for lack of memory"
    study.add_trial(
        optuna.create_trial(state=TrialState.FAIL, user_attrs={**trial.user_attrs, "failure": reason}),
    )


def open_storage(url: str, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> RDBStorage:
    """Open a database for trials: heartbeats free the trials of dead workers, and calls wait out an outage.

    Raises:
        InputError: the address is none, its driver is not installed, or the database does not answer now.
    """
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:  # a port that is no number is the latter
        raise InputError(
            f"`storage` must look like postgresql://user@host/database, got {without_passwords(url)!r}."
        ) from error
    if address.drivername == "postgresql":  # SQLAlchemy's versions take it for one driver or another
        address = address.set(drivername="postgresql+psycopg")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = _Storage(
                address.render_as_string(hide_password=False),
                engine_kwargs=_ENGINES.get(address.get_backend_name(), _ENGINE),
                heartbeat_interval=heartbeat,
                grace_period=grace,
                heartbeat_stale_trial_callback=_retry,
            )
    except (NoSuchModuleError, ImportError) as error:
        raise InputError(
            f"`storage` {without_password(url)} needs a driver ({error}); for PostgreSQL pip install "
            "'segdrop[postgresql]'."
        ) from error
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = without_passwords(first_line(error.__cause__ or error))
        raise InputError(f"`storage` {without_password(url)} cannot be reached: {reason}.") from error
    storage.patience = PATIENCE
    return storage


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever a database that is damaged makes Optuna and SQLAlchemy raise becomes one line.

    Raises:
        InputError: `what` cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except (SQLAlchemyError, StorageInternalError, *_OF_WRONG_VALUES) as error:
        reason = first_line(getattr(error.__cause__ or error, "orig", None) or error)
        raise InputError(f"{what} cannot be read: {reason}; {ADVICE}.") from error


def file_url(folder: Path) -> str:
    """The address of the database file in a sweep's folder."""
    return f"sqlite:///{(folder / DATABASE).absolute()}"


def without_password(url: str) -> str:
    """A database's address without its password."""
    return without_passwords(make_url(url).render_as_string(hide_password=True))


def _is_passing(error: BaseException | None) -> bool:
    """Whether an exception means that the database was out of reach, or locked, and not that a call is wrong."""
    if not isinstance(error, (StorageInternalError, SQLAlchemyError)):
        return False
    # A second query on the broken connection, which Optuna tries, hides the cause.
    while error and not isinstance(error, DBAPIError):
        error = error.__cause__ or error.__context__
    if error is None:
        return False
    if type(error.orig).__module__ == "sqlite3":
        return "locked" in str(error.orig)  # a missing table and a full disk are the same class
    return error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))


def _patiently(method):
    @functools.wraps(method)
    def call(self, *arguments, **options):
        wait, deadline = 0.5, time.monotonic() + self.patience
        while True:
            try:
                return method(self, *arguments, **options)
            except Exception as error:
                if not _is_passing(error) or time.monotonic() > deadline:
                    raise
                check()
                self.suspects.clear()
            time.sleep(wait * random.uniform(0.5, 1))  # apart from the other workers
            wait = min(2 * wait, _LONGEST_WAIT)

    return call


class _Storage(RDBStorage):
    """RDBStorage whose calls are repeated while the database does not answer, and whose trials are claimed by one only.

    So is the heartbeat, whose thread would end at the first failure and leave a living worker's trial to be declared
    stale.
    """

    patience = 0.0  # while it is opened

    def __init__(self, url, **options):
        self.suspects: dict[int, float] = {}  # trials that look stale, by when they did so first
        for tries_left in reversed(range(10)):
            try:
                super().__init__(url, **options)
                break
            except SQLAlchemyError as error:
                # Processes that create the tables at the same time get in each other's way; the next try finds them.
                told = str(error).lower()
                if not tries_left or not any(words in told for words in ("already exists", "unique", "locked")):
                    raise
                time.sleep(random.random())
        if self.engine.name == "sqlite":
            # SQLite ignores FOR UPDATE: two workers that read "waiting" before either writes would both claim a trial.
            event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    def _create_new_trial(self, study_id, template_trial=None):
        """Where no trial is waiting `Study.optimize` makes one of its own choice, which no worker must."""
        if template_trial is None:
            raise NothingWaiting
        return self._create(study_id, template_trial)

    def set_trial_state_values(self, trial_id, state, values=None):
        """A running trial has a heartbeat from the start, so that a worker killed after claiming it is found out; and a
        call repeated after a commit whose confirmation was lost finds its own work."""
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        try:
            return self._set_state(trial_id, state, values)
        except UpdateFinishedTrialError:
            trial = self.get_trial(trial_id)
            if state.is_finished() and (trial.state, trial.values) == (state, values and list(values)):
                return True
            raise

    def _get_stale_trial_ids(self, study_id):
        """Trials that look stale for a while: after an outage longer than the grace period all that run do at first."""
        now = time.monotonic()
        self.suspects = {trial: self.suspects.get(trial, now) for trial in self._stale(study_id)}
        patience = _LONGEST_WAIT + 2 * self.heartbeat_interval
        return [trial for trial, since in self.suspects.items() if now - since > patience]

    _create = _patiently(RDBStorage._create_new_trial)
    _set_state = _patiently(RDBStorage.set_trial_state_values)
    _stale = _patiently(RDBStorage._get_stale_trial_ids)


# Everything else that asks the database. A version of Optuna that has no such method of its own would leave the calls
# in its place without patience.
PATIENT = """
    create_new_study delete_study set_study_user_attr set_study_system_attr get_study_id_from_name
    get_study_name_from_id get_study_directions get_study_user_attrs get_study_system_attrs get_all_studies
    _set_trial_param get_trial_param set_trial_intermediate_value set_trial_user_attr set_trial_system_attr
    get_trial_id_from_study_id_trial_number get_trial _get_trials _get_best_trial_id record_heartbeat
    get_trial_user_attrs get_trial_system_attrs
""".split()
for _name in PATIENT:
    if _name not in vars(RDBStorage):
        raise ImportError(f"Optuna {optuna.__version__} has no RDBStorage.{_name}; install optuna>=5.0,<6.")
    setattr(_Storage, _name, _patiently(vars(RDBStorage)[_name]))
