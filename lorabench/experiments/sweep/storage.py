"""Where the trials of a sweep are kept: an Optuna study in SQLite beside the runs, or in a database for many machines.

A worker says with heartbeats that its trials are alive; those of a worker that has gone silent are given up, and
taken by another.
"""

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from lorabench.errors import ConfigError, RunError, first_line
from lorabench.harmless import printable

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

STUDY_FILE = "study.db"
HEARTBEAT_S = 30
"""Seconds between two signs of life."""
GRACE_S = 300
"""Seconds of silence after which a worker is taken for dead."""
_EXAMPLE = "postgresql+psycopg://USER@HOST/NAME"
# What drivers take for passwords in a URL's query.
_SECRET_WORDS = ("password", "passfile", "sslpassword", "passwd", "pwd")
_HIDDEN = "***"
# SQLite has one writer at a time; others wait this long.
_BUSY_S = 60
_TRIES = 6


def missing_packages(backend: str) -> list[str]:
    """One message for each package that a backend needs and that is not installed."""
    needed = {"optuna": "optuna"} | ({"wandb": "wandb", "sweeps": "sweeps"} if backend == "wandb" else {})
    return [
        f"--backend {backend}: the package {name} is not installed; expected `pip install {package}` before"
        for name, package in needed.items()
        if find_spec(package) is None
    ]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Inside, Optuna says nothing of each trial, nor which of its parts are experimental."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", module=r"optuna\..*")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def default_storage(folder: Path) -> str:
    """The URL of a sweep's own SQLite file."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str((folder / STUDY_FILE).resolve())).render_as_string()


def storage_issues(url: str) -> list[str]:
    """What is wrong with a URL by itself; nobody is asked whether the database is there."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError

    try:
        _refuse_no_url(url)
        create_engine(url).dispose()
    except ConfigError as error:
        return list(error.issues)
    except (ImportError, ArgumentError) as error:
        return [_not_for_optuna(error, url)]
    return []


def _not_for_optuna(error: Exception, url: str) -> str:
    return f"--storage {shown(url)}: {_reason(error, url)}; expected one that Optuna takes"


def open_storage(url: str) -> "RDBStorage":
    """Connect to the database, and make Optuna's tables where there are none.

    Raises:
        ConfigError: the URL is none, its driver is missing, or nobody answers.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    _refuse_no_url(url)
    is_sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_S}} if is_sqlite else {"pool_pre_ping": True}
    for left in reversed(range(_TRIES)):
        try:
            storage = RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
            if is_sqlite:
                _lock_at_once(storage)
            return storage
        except (ImportError, ArgumentError) as error:
            raise ConfigError(_not_for_optuna(error, url)) from None
        except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            if left == 0 or isinstance(error, RuntimeError):
                raise ConfigError(f"--storage {shown(url)}: {_reason(error, url)}") from None
            time.sleep(random.uniform(0.1, 0.5))  # another worker may be making the tables at this moment
    raise AssertionError  # the last try returns or raises


def _refuse_no_url(url: str) -> None:
    """Raises `ConfigError` for what is no URL, or one whose password cannot be told from its host."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        host = make_url(url).host or ""
    except (ArgumentError, ValueError):
        # What is wrong is not repeated: a password may be part of it.
        raise ConfigError(f"--storage: no URL, or one whose port is no number; expected one as {_EXAMPLE}") from None
    if "@" in host:
        raise ConfigError("--storage: several @ before its end; expected %40 for each one of a user or password")


def _lock_at_once(storage: "RDBStorage") -> None:
    """Begin every transaction of SQLite with its lock.

    SQLite has no `SELECT ... FOR UPDATE`, on which Optuna relies for two workers not to take the same trial
    (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl).
    """
    from sqlalchemy import event

    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()
    event.listen(storage.engine, "connect", connected)
    event.listen(storage.engine, "begin", begun)


def open_study(storage: "RDBStorage", name: str, maximize: bool) -> "Study":
    """The study of that name, made if there is none.

    Raises:
        ConfigError: it is there, for the other direction.
    """
    import optuna

    direction = "maximize" if maximize else "minimize"
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    _refuse_other_goal(study, maximize)
    return study


def find_study(storage: "RDBStorage", name: str, maximize: bool) -> "Study | None":
    """The study of that name, if there is one.

    Raises:
        ConfigError: it is for the other direction.
    """
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    _refuse_other_goal(study, maximize)
    return study


def _refuse_other_goal(study: "Study", maximize: bool) -> None:
    name, direction = study.study_name, "maximize" if maximize else "minimize"
    if study.direction.name.lower() != direction:
        raise ConfigError(f"--study {name}: a study that is to {study.direction.name.lower()}; expected another name")


@contextmanager
def answering(url: str) -> Iterator[None]:
    """What a database does not answer inside is one `RunError`: the same command goes on when it does."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise RunError(f"--storage {shown(url)}: {_reason(error, url)}; the same command goes on") from error


def shown(url: str) -> str:
    """A URL without its passwords."""
    from sqlalchemy.engine import make_url

    try:
        parsed = make_url(url)
    except Exception as error:  # of many kinds, for what is no URL
        return f"(no URL: {type(error).__name__})"
    hidden = {name: _HIDDEN for name in parsed.query if name.lower() in _SECRET_WORDS}
    text = parsed.update_query_dict(hidden).render_as_string(hide_password=True)
    return printable(text.replace(quote_plus(_HIDDEN), _HIDDEN))


def _reason(error: Exception, url: str) -> str:
    """What a driver says, which may repeat the URL."""
    cause = error.__cause__ or error
    text = first_line(Exception(getattr(cause, "orig", None) or cause))
    for secret in _secrets(url):
        text = text.replace(secret, _HIDDEN)
    return printable(text)


def _secrets(url: str) -> list[str]:
    """The passwords of a URL, as they are and as they are written there."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    found = [str(value) for name, value in parsed.query.items() if name.lower() in _SECRET_WORDS]
    found += [] if parsed.password is None else [str(parsed.password)]
    return [text for secret in found if secret for text in (secret, quote(secret), quote_plus(secret))]
