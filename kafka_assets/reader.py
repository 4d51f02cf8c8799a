"""Reading the warehouse beside those who write it: the file is held only while a query runs."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

from kafka_assets.errors import WarehouseInvalidError
from kafka_assets.warehouse import CATALOG, Warehouse

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import duckdb
    import pyarrow as pa

    from kafka_assets.config import Config


class Result:
    """All rows of a query; the file is free again.

    Attributes:
        description: As of a DB-API cursor.
    """

    def __init__(self, table: pa.Table, description: Sequence[tuple[Any, ...]]) -> None:
        self.description = tuple(description)
        self._table = table
        self._rows: list[tuple[Any, ...]] | None = None
        self._next = 0

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return [column[0] for column in self.description]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows not yet fetched, as tuples."""
        return self.fetchmany(self._table.num_rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, None after the last."""
        found = self.fetchmany(1)
        return found[0] if found else None

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """Return up to `size` next rows."""
        if self._rows is None:
            self._rows = list(zip(*map(_values, self._table.columns, self.description), strict=True))
        found = self._rows[self._next : self._next + size]
        self._next += len(found)
        return found

    def to_arrow_table(self) -> pa.Table:
        """Return all rows as an Arrow table."""
        return self._table

    arrow = to_arrow_table

    def df(self) -> Any:  # noqa: ANN401  pandas is the caller's own dependency
        """Return all rows as a pandas DataFrame; needs pandas."""
        return self._table.to_pandas()


def _values(column: pa.ChunkedArray, described: tuple[Any, ...]) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if str(described[1]) in {"HUGEINT", "UHUGEINT"}:
        # Arrow has no such integers; sums of integers are of this type.
        return [None if value is None else int(value) for value in values]
    return values


class Reader:
    """Runs queries on the warehouse, read-only. Any number of threads may use one."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Refuse further queries. The file is held by none already."""
        self._closed.set()

    def execute(self, sql: str, params: Sequence[object] | Mapping[str, object] | None = None) -> Result:
        """Run one query to its end and return all of its rows.

        Args:
            sql: DuckDB SQL; the warehouse is the default database.
            params: For `?`, `$1` or `$name` in it.

        Raises:
            WarehouseLockedError: The file was not free within `lock_timeout`.
            WarehouseInvalidError: There is no warehouse yet, or the file is none.
            duckdb.Error: What is wrong with the query; writes are refused.
        """
        if self._closed.is_set():
            raise ValueError("this reader is closed; open another with kafka_assets.connect()")
        with self._warehouse.reading() as con:
            if con is None:
                raise WarehouseInvalidError(
                    f"the warehouse {self._warehouse.path} does not exist: nothing was ingested into it yet."
                    " Check"
                    " `warehouse.uri`, or run `kafka-assets ingest` first."
                )
            # A connection of its own, so that what a query sets or begins ends with it.
            with closing(con.cursor()) as cursor:
                cursor.execute(f"USE {CATALOG}")
                return _run(cursor, sql, params)

    sql = execute
    query = execute


def _run(
    cursor: duckdb.DuckDBPyConnection, sql: str, params: Sequence[object] | Mapping[str, object] | None
) -> Result:
    relation = cursor.sql(sql, params=params)
    return Result(relation.to_arrow_table(), relation.description)


def connect(config: str | os.PathLike[str] | Config | None = None) -> Reader:
    """Open the warehouse of a streams file for reading.

    Args:
        config: The streams file or what `load_config` made of it; None for the one that commands would use.

    Returns:
        A reader, also a context manager. It holds the file only while a query runs.

    Raises:
        ConfigInvalidError: The streams file cannot be used.
    """
    from kafka_assets.config import Config, load_config  # noqa: PLC0415  not needed by those who bring their own

    found = config if isinstance(config, Config) else load_config(config)
    # A query may be over anything, and its result is in memory besides.
    return Reader(Warehouse.of(found.warehouse, memory_limit=None))
