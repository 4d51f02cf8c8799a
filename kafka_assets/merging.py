"""Row groups merged by their bytes, where DuckDB, which merges them by their rows, is kept from it.

In a warehouse with large records each plan and each commit adds a row group to the tables it writes to. As in a
log-structured merge tree the rows of the latest 8 commits are written again together after each 8th, those of the
latest 64 after each 64th, and so on, as far as that is worth its bytes: so a row is written again seldom, and row
groups are few.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from kafka_assets import ledger_sql as sql
from kafka_assets.errors import RunFailedError
from kafka_assets.statements import changed
from kafka_assets.warehouse import are_row_groups_apart

if TYPE_CHECKING:
    import duckdb

FANOUT = 8
MOST_BYTES = 64 * 1024**2
"""Of records that are written again together, in memory."""


def merge_row_groups(con: duckdb.DuckDBPyConnection, stream: str, batch: str, table: str) -> None:
    """Write the rows of a stream's latest commits again, together, where it is time to.

    Args:
        con: Given by `Warehouse.writing()`.
        stream: The stream.
        batch: The one about to be committed; its rows are left alone.
        table: The stream's table, quoted.

    Raises:
        RunFailedError: Not all the rows that were to be written again were found again.
    """
    if not are_row_groups_apart(con):
        return
    ((commits,),) = con.execute(sql.COUNT_COMMITS, {"stream": stream}).fetchall()
    count = _power_in(int(commits))
    if count < FANOUT:
        return
    named = {"stream": stream, "batch": batch, "count": count}
    latest = con.execute(sql.LATEST_COMMITS, named).fetchall()
    keys = [key for key, _ in latest]
    for ledger in ("kafka_assets_ledger.batches", "kafka_assets_ledger.offset_ranges"):
        _write_again(con, ledger, sql.OF_LATEST_IN_LEDGER, stream=stream, batches=keys)
    light = len(list(takewhile(lambda one: one[1] <= MOST_BYTES, latest)))
    while count > light:
        count //= FANOUT
    if count >= FANOUT:
        del keys[count:]
        quarantine = "kafka_assets_ledger.quarantine"
        _write_again(con, quarantine, sql.OF_LATEST_QUARANTINED, stream=stream, batches=keys)
        _write_again(con, table, sql.OF_LATEST_ROWS, batches=keys)


def _power_in(commits: int) -> int:
    """Return the greatest power of the fan-out that divides a number of commits; 1 for none."""
    power = 1
    while commits and commits % (power * FANOUT) == 0:
        power *= FANOUT
    return power


def _write_again(con: duckdb.DuckDBPyConnection, table: str, those: str, **named: object) -> None:
    kept = changed(con, sql.KEEP_LATEST.format(table=table, those=those), **named)
    deleted = changed(con, sql.DELETE_LATEST.format(table=table, those=those), **named)
    inserted = changed(con, sql.INSERT_KEPT.format(table=table))
    con.execute(sql.DROP_KEPT).fetchall()
    if not kept == deleted == inserted:
        raise RunFailedError(
            f"{table}: {kept} rows were to be merged, {deleted} deleted and {inserted} written; undone."
        )
