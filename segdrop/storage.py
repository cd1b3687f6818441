"""Where a sweep's trials are kept: Optuna's database storage, which here outlives an outage of the database."""

import functools
import random
import time
from pathlib import Path

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError

from .errors import InputError

HEARTBEAT, GRACE = 30, 150  # seconds between signs of life, and without one until a trial counts as stale
PATIENCE = 900  # seconds that a call waits for a database that does not answer
_LONGEST_WAIT = 10
DATABASE = "sweep.db"  # the file in a sweep's folder


def open_storage(url: str, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> RDBStorage:
    """Open a database for trials: heartbeats free the trials of dead workers, and calls wait out an outage.

    Raises:
        InputError: the address is none, its driver is not installed, or the database does not answer now.
    """
    try:
        kind = make_url(url).get_backend_name()
        # Workers on one machine wait for each other's writes.
        arguments = {"connect_args": {"timeout": 60}} if kind == "sqlite" else {"pool_pre_ping": True}
        return _PatientStorage(
            url,
            engine_kwargs=arguments,
            heartbeat_interval=heartbeat,
            grace_period=grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    except ArgumentError as error:
        raise InputError(f"`storage` must look like postgresql://user@host/database, got {url!r}.") from error
    except (NoSuchModuleError, ImportError) as error:
        raise InputError(
            f"`storage` {shown(url)} needs a driver ({error}); for PostgreSQL pip install 'segdrop[postgresql]'."
        ) from error
    except Exception as error:
        if not _is_outage(error):
            raise
        reason = str(getattr(error.__cause__ or error, "orig", error)).strip().splitlines()[0]
        raise InputError(f"`storage` {shown(url)} cannot be reached: {reason}.") from error


def file_url(folder: Path) -> str:
    """The address of the database file in a sweep's folder."""
    return f"sqlite:///{(folder / DATABASE).absolute()}"


def shown(url: str) -> str:
    """A database's address without its password."""
    return make_url(url).render_as_string(hide_password=True)


class _PatientStorage(RDBStorage):
    """Calls that cannot reach the database are repeated until it answers; so is the heartbeat, whose thread would end
    at the first failure and leave a living worker's trial to be declared stale."""

    patience = 0.0  # while it is opened

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.patience = PATIENCE


def _is_outage(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return isinstance(cause, (OperationalError, InterfaceError)) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def _patiently(method):
    @functools.wraps(method)
    def call(self, *arguments, **options):
        deadline, wait = time.monotonic() + self.patience, 0.5
        while True:
            try:
                return method(self, *arguments, **options)
            except Exception as error:
                if not _is_outage(error) or time.monotonic() > deadline:
                    raise
            time.sleep(wait * random.uniform(0.5, 1))  # apart from the other workers
            wait = min(2 * wait, _LONGEST_WAIT)

    return call


for _name, _method in list(vars(RDBStorage).items()):
    if callable(_method) and (not _name.startswith("_") or _name in ("_get_stale_trial_ids", "_get_trials")):
        setattr(_PatientStorage, _name, _patiently(_method))
