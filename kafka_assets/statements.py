"""SQL text and rows on their way into the database: quoting, counting what a statement changed, bulk rows."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kafka_assets.config.values import TableName

_ROWS = "_kafka_assets_rows"


def quote(identifier: str) -> str:
    """Return an identifier quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def quote_table(table: TableName) -> str:
    """Return a table's name for SQL, with its schema."""
    return f"{quote(table.schema or 'main')}.{quote(table.name)}"


@contextmanager
def registered(
    con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table | pa.RecordBatchReader
) -> Iterator[None]:
    """Give Arrow rows a name in SQL for as long as the context lasts; those of a reader can be read once."""
    con.register(name, rows)
    try:
        yield
    finally:
        # Fails only in a transaction that is about to be rolled back, and the name with it.
        with suppress(duckdb.Error):
            con.unregister(name)


def changed(con: duckdb.DuckDBPyConnection, statement: str, **named: object) -> int:
    """Run a statement that changes rows and return how many."""
    ((count,),) = con.execute(statement, named).fetchall()
    return int(count)


def insert(
    con: duckdb.DuckDBPyConnection,
    statement: str,
    schema: pa.Schema,
    rows: Sequence[Mapping[str, object]],
    **named: object,
) -> int:
    """Run a statement over rows, named `{rows}` in it, and return how many it changed."""
    if not rows:
        return 0
    with registered(con, _ROWS, pa.Table.from_pylist(list(rows), schema=schema)):
        return changed(con, statement.format(rows=_ROWS), **named)
