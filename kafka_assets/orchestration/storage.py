"""Dagster's SQLite storage, keeping what it would make anew for each event and each run."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory

# Dagster has no setting for how its storage connects; the dependency is held to one minor version for these.
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config
    from sqlalchemy.engine import Engine

_MOST_ENGINES = 8
"""Each run has a database of its own, and few are written to at once."""


@cache
def keep_what_storage_makes() -> None:
    """Have this process keep SQLAlchemy's engines and Alembic's scripts: a third of what recording a run costs.

    An engine of Dagster's holds no connection open, only the statements it has compiled.
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


def _kept(create_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    engines: dict[str, Engine] = {}

    def kept(url: str, **options: Any) -> Engine:  # noqa: ANN401  SQLAlchemy's own
        if url not in engines:
            while len(engines) >= _MOST_ENGINES:
                engines.pop(next(iter(engines)))
            engines[url] = create_engine(url, **options)
        return engines[url]

    return kept
