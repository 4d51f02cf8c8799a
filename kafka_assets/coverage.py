"""The coverage proof: every offset below the planned end is in one class, and the table has what was loaded.

The ledger's classes were counted at the fetch, each by itself. Here they are added up, laid side by side,
and compared with what the table holds now: count, distinct count, extremes, sum of offsets and digest of each
range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka_assets import ledger_sql as sql
from kafka_assets.config.values import TableName
from kafka_assets.digest import BAD_COLUMNS, DIGEST_FUNCTION, digest_expression
from kafka_assets.errors import BatchUnknownError
from kafka_assets.ledger import check_table, schema_version
from kafka_assets.statements import quote_table
from kafka_assets.warehouse import literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb

    from kafka_assets.formats import Column

CELLS_AT_ONCE = 1_000_000
"""Groups of 64 neighbouring offsets that one query counts, in some 200 bytes each."""

PROBLEMS_NAMED = 100
"""Problems of one kind that are told one by one."""

_CLASSES = ("loaded", "filtered", "quarantined", "undeliverable", "lost", "removed", "pending")


@dataclass(frozen=True, slots=True)
class PartitionCoverage:
    """How many of the offsets `[from_offset, until_offset)` of a topic-partition are in each class."""

    topic: str
    topic_id: str | None
    incarnation: int
    partition: int
    from_offset: int
    until_offset: int
    loaded: int
    filtered: int
    quarantined: int
    undeliverable: int
    lost: int
    removed: int
    pending: int

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `verify --json` shows."""
        return {
            "topic": self.topic,
            "topic_id": self.topic_id,
            "incarnation": self.incarnation,
            "partition": self.partition,
            "from": self.from_offset,
            "until": self.until_offset,
            **{name: getattr(self, name) for name in _CLASSES},
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """How the proof went. `problems` has a sentence for each thing that is not as it must be."""

    ok: bool
    problems: tuple[str, ...]
    partitions: tuple[PartitionCoverage, ...]


def verify(
    con: duckdb.DuckDBPyConnection | None,
    stream: str,
    columns: Sequence[Column],
    *,
    batch: str | None = None,
) -> Verification:
    """Prove the coverage of a stream, or of one batch of it, from the ledger and the table.

    Memory is bounded by `CELLS_AT_ONCE` and by DuckDB's own limit, not by the table.

    Args:
        con: Given by `Warehouse.reading()` or `Warehouse.writing()`; None for no warehouse.
        stream: The stream; one never planned is covered.
        columns: The format's own columns.
        batch: Look at this batch's ranges and rows alone.

    Raises:
        BatchUnknownError: The ledger has no such batch.
        WarehouseInvalidError: The ledger's version is unknown, or the table no longer fits.
    """
    version = schema_version(con)
    found = con.execute(sql.READ_STREAM, {"stream": stream}).fetchall() if con and version else []
    if con is None or version is None or not found:
        if batch is not None:
            raise BatchUnknownError(
                f"stream {stream} has no batch {batch}: the ledger does not know the stream."
            )
        return Verification(ok=True, problems=(), partitions=())
    table = TableName(schema=found[0][1], name=found[0][2])
    check_table(con, table, columns)
    partitions = coverage(con, stream, batch=batch)
    if batch is not None and not partitions:
        raise BatchUnknownError(f"stream {stream} has no batch {batch} in the ledger.")
    problems = [
        *_sums(partitions),
        *(() if batch else _tiling(con, stream)),
        *(() if batch else _ledger(con, stream)),
        *_classes(con, stream, batch, sealed=version >= sql.SEALED_SINCE),
        *_rows(con, stream, table, columns, batch),
    ]
    return Verification(ok=not problems, problems=tuple(problems), partitions=partitions)


def coverage(
    con: duckdb.DuckDBPyConnection, stream: str, *, batch: str | None = None
) -> tuple[PartitionCoverage, ...]:
    """Count the offsets of each class by topic-partition and incarnation, from the ledger alone."""
    rows = con.execute(sql.COVERAGE, {"stream": stream, "batch": batch}).fetchall()
    return tuple(PartitionCoverage(*row[:6], *(int(number or 0) for number in row[6:])) for row in rows)


def _sums(partitions: Sequence[PartitionCoverage]) -> Iterator[str]:
    for one in partitions:
        accounted = sum(getattr(one, name) for name in _CLASSES)
        if accounted != one.until_offset - one.from_offset:
            place = _place(one.topic, one.partition, one.from_offset, one.until_offset)
            yield (
                f"{place} of incarnation {one.incarnation}: the classes hold {accounted} offsets of"
                f" {one.until_offset - one.from_offset}."
            )


def _tiling(con: duckdb.DuckDBPyConnection, stream: str) -> Iterator[str]:
    named = {"stream": stream, "limit": PROBLEMS_NAMED}
    for batch, topic, partition, low, high, incarnation, start, end in con.execute(
        sql.TILING_FLAWS, named
    ).fetchall():
        what = f"batch {batch}" if batch else "the skipped stretch"
        where = f"{what}, {_place(topic, partition, low, high)} of incarnation {incarnation}"
        if start is None:
            yield f"{where}: the ledger has no position for it."
        elif low != start:
            flaw = "leaves a gap after" if low > start else "overlaps what ends at"
            yield f"{where}: {flaw} offset {start}."
        else:
            yield f"{where}: is the last one planned, but the plan ends at offset {end}."


def _ledger(con: duckdb.DuckDBPyConnection, stream: str) -> Iterator[str]:
    named = {"stream": stream, "limit": PROBLEMS_NAMED}
    for batch, topic, partition, what in con.execute(sql.LEDGER_FLAWS, named).fetchall():
        parts = [f"batch {batch}" if batch else "", f"{topic}[{partition}]" if topic else ""]
        yield f"{', '.join(filter(None, parts)) or f'stream {stream}'}: {what}."


def _classes(
    con: duckdb.DuckDBPyConnection, stream: str, batch: str | None, *, sealed: bool
) -> Iterator[str]:
    named = {"stream": stream, "batch": batch, "limit": PROBLEMS_NAMED}
    statement = sql.CLASS_FLAWS.format(broken=sql.SEAL_BROKEN if sealed else "false")
    for row in con.execute(statement, named).fetchall():
        key, topic, partition, low, high, accounted, lost, booked, quarantined, kept, negative, broken = row
        where = f"batch {key}, {_place(topic, partition, low, high)}"
        if accounted is None:
            yield f"{where}: is committed, but the ledger has no outcome for it."
            continue
        if accounted != high - low:
            yield f"{where}: its classes hold {accounted} offsets of {high - low}."
        if lost != booked:
            yield f"{where}: {lost} offsets count as lost, {booked} are written down in losses."
        if quarantined != kept:
            yield f"{where}: {quarantined} records count as quarantined, the quarantine holds {kept}."
        if negative:
            yield f"{where}: a class is negative."
        if broken:
            yield f"{where}: what the ledger says of it was changed since its commit (its seal is broken)."


def _rows(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    table: TableName,
    columns: Sequence[Column],
    batch: str | None,
) -> Iterator[str]:
    target = quote_table(table)
    if batch is None:
        ((nameless,),) = con.execute(sql.ROWS_WITHOUT_IDENTITY.format(table=target)).fetchall()
        if nameless:
            yield f"table {table}: {nameless} rows have no batch, topic, partition or offset."
    digest = digest_expression([column.name for column in columns])
    for rows_of_block, ranges_of_block in _blocks(con, stream, batch):
        flaws = con.execute(
            sql.TABLE_FLAWS.format(
                table=target,
                digest=digest,
                bad_digest=digest_expression(BAD_COLUMNS),
                rows_of_block=rows_of_block,
                ranges_of_block=ranges_of_block,
            ),
            {"stream": stream, "digest_function": DIGEST_FUNCTION, "limit": PROBLEMS_NAMED},
        ).fetchall()
        for flaw in flaws:
            yield from _row_problems(*flaw)


def _blocks(con: duckdb.DuckDBPyConnection, stream: str, batch: str | None) -> Iterator[tuple[str, str]]:
    """Cut the batch keys into stretches of about `CELLS_AT_ONCE`, which hold every key there can be.

    Keys are put in as literals: the scan skips row groups by them.
    """
    if batch is not None:
        yield f"_kafka_batch = {literal(batch)}", f"batch = {literal(batch)}"
        return
    found = con.execute(sql.BLOCKS, {"stream": stream, "cells": CELLS_AT_ONCE}).fetchall()
    bounds = [key for (key,) in found][1:]
    for low, high in zip([None, *bounds], [*bounds, None], strict=True):
        rows, ranges = (
            " AND ".join(
                [f"{name} IS NOT NULL"]
                + ([f"{name} >= {literal(low)}"] if low is not None else [])
                + ([f"{name} < {literal(high)}"] if high is not None else [])
            )
            for name in ("_kafka_batch", "batch")
        )
        yield rows, ranges


def _row_problems(
    batch: str,
    topic: str,
    partition: int,
    low: int | None,
    high: int | None,
    state: str | None,
    loaded: int | None,
    quarantined: int | None,
    rows: int,
    kept: int,
    offsets: int | None,
    lowest: int | None,
    highest: int | None,
    sum_differs: bool | None,
    digest_differs: bool | None,
) -> Iterator[str]:
    if low is None or high is None:
        yield (
            f"batch {batch}, {topic}[{partition}]: {_held(rows, kept)} of it, the ledger knows no such range."
        )
        return
    where = f"batch {batch}, {_place(topic, partition, low, high)}"
    if state == "planned":
        yield f"{where}: is not committed, yet {_held(rows, kept)} of it."
        return
    if loaded is None:
        return  # what has no outcome has been told
    # Of the quarantine's number the classes have told.
    as_counted = rows == loaded and kept == quarantined
    if rows != loaded:
        yield f"{where}: the ledger counts {loaded} rows, the table has {rows}."
    if offsets is not None and rows + kept != offsets:
        as_counted = False
        yield f"{where}: {rows + kept - offsets} of {_these(rows, kept)} have an offset that another has."
    if lowest is not None and highest is not None and (lowest < low or highest >= high):
        as_counted = False
        yield f"{where}: {_place_of(kept)} has rows outside of it, from offset {lowest} to {highest}."
    # A wrong count implies wrong sums, which would say nothing more.
    if as_counted and sum_differs:
        yield f"{where}: the offsets in {_place_of(kept)} sum up to another number than those fetched."
    elif as_counted and digest_differs:
        yield f"{where}: a key or value in {_place_of(kept)} is not what was fetched (the digests differ)."


def _held(rows: int, kept: int) -> str:
    held = [f"the table has {rows} rows"] if rows or not kept else []
    return " and ".join([*held, *([f"the quarantine has {kept} records"] if kept else [])])


def _these(rows: int, kept: int) -> str:
    return f"the {rows + kept} in table and quarantine" if kept else f"the table's {rows} rows"


def _place_of(kept: int) -> str:
    return "table or quarantine" if kept else "the table"


def _place(topic: str, partition: int, low: int, high: int) -> str:
    return f"{topic}[{partition}] [{low}, {high})"
