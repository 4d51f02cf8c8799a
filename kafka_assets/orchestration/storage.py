"""Dagster's SQLite storage, keeping what it would make anew for each event and each run."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory

# Dagster has no setting for how its storage connects; the dependency is held to one minor version for these.
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config
    from sqlalchemy.engine import Engine

_MOST_ENGINES = 8
"""Each run has a database of its own, and few are written to at once."""


@cache
def keep_what_storage_makes() -> None:
    """Have this process keep connections, Alembic's scripts and an empty database: most of what recording a run costs.

    Dagster closes its connection after each event, and the last one closed has SQLite write its write-ahead log
    back, sync the database and remove the log. For each run it makes a database anew, in fifty statements.
    """
    for module in (sqlite_event_log, sqlite_run_storage):
        vars(module)["create_engine"] = _kept(vars(module)["create_engine"])
    read = ScriptDirectory.from_config
    found: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in found:
            found[location] = read(config)
        return found[location]

    ScriptDirectory.from_config = from_config  # type: ignore[method-assign]
    SqliteEventLogStorage._initdb = _copied(SqliteEventLogStorage._initdb)  # type: ignore[method-assign]  # noqa: SLF001


class _KeptPool(QueuePool):
    """Keeps a connection open, with what SQLite has read, though Dagster lets go of its engine each time."""

    def dispose(self) -> None:
        """Keep it."""

    def recreate(self) -> _KeptPool:
        """Go on with it."""
        return self


def _kept(create_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    engines: dict[str, Engine] = {}
    lock = threading.Lock()

    def kept(url: str, **options: Any) -> Engine:  # noqa: ANN401  SQLAlchemy's own
        with lock:
            engine = engines.pop(url, None)
            if engine is None:
                engine = create_engine(
                    url, **{**options, "poolclass": _KeptPool, "pool_size": 1, "max_overflow": -1}
                )
            engines[url] = engine
            if len(engines) > _MOST_ENGINES:
                QueuePool.dispose(engines.pop(next(iter(engines))).pool)  # type: ignore[arg-type]
        return engine

    return kept


def _copied(make: Callable[..., None]) -> Callable[..., None]:
    empty = b""

    def copied(storage: SqliteEventLogStorage, engine: Engine, for_index_shard: bool = False) -> None:
        nonlocal empty
        path = Path(engine.url.database or "")
        is_new_run = not (for_index_shard or path.exists())
        if is_new_run and empty:
            copy = path.with_name(f"{path.name}.new")
            copy.write_bytes(empty)
            copy.rename(path)
        make(storage, engine, for_index_shard)
        if is_new_run and not empty:
            with engine.connect() as connection:
                empty = connection.connection.driver_connection.serialize()  # type: ignore[union-attr]

    return copied
