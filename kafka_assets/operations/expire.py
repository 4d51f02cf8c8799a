"""`expire`: delete rows on purpose and book them as removed, in one transaction, for good."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import duckdb

from kafka_assets import ledger_sql as sql
from kafka_assets.config.values import TableName
from kafka_assets.digest import BAD_COLUMNS, digest_expression
from kafka_assets.errors import ProofFailedError, UsageInvalidError
from kafka_assets.formats import get_format
from kafka_assets.ledger import (
    METADATA_COLUMNS,
    ClassMove,
    check_table,
    ensure_schema,
    has_ledger,
    move_classes,
)
from kafka_assets.offsets import OffsetRange
from kafka_assets.planner import utc_now
from kafka_assets.removals import of_metadata, removed_condition
from kafka_assets.statements import changed, quote, quote_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from kafka_assets.config import StreamConfig
    from kafka_assets.formats import Column
    from kafka_assets.warehouse import Warehouse

_BEFORE = "_kafka_timestamp < TIMESTAMPTZ "
_OF_NOW = ("current_", "local")
_NOT_IN_A_PREDICATE = {
    "SUBQUERY": "a subquery",
    "PARAMETER": "a parameter",
    "STAR": "a star",
    "WINDOW": "a window function",
}
# Changes with every replay, so a row removed by it would come back.
_OF_THE_COMMIT = "_ingested_at"


@dataclass(frozen=True, slots=True)
class Expired:
    """The rows and bad records removed of a planned range, or those that would be."""

    range: OffsetRange
    rows: int


def before(moment: datetime) -> str:
    """Return the predicate of records with a timestamp before a fixed moment; those without one stay."""
    return f"{_BEFORE}'{moment.isoformat(timespec='microseconds')}'"


def expire(stream: StreamConfig, warehouse: Warehouse, predicate: str, *, apply: bool) -> tuple[Expired, ...]:
    """Remove the rows that a predicate matches, or only count them.

    Rows, ledger and the predicate itself are written in one transaction. It holds for every later replay or
    first load of the batches planned so far, not for those planned later. Of the quarantine it removes what it
    matches, if it speaks of the metadata columns alone; what another one matches is seen once it is decoded.

    Args:
        stream: The stream.
        warehouse: Where its table is.
        predicate: A boolean SQL expression over the columns of the stream's table; NULL does not match.
        apply: Remove them. Else nothing is changed.

    Raises:
        UsageInvalidError: The predicate is none, reaches beyond the row, or does not give the same each time.
        ProofFailedError: The ledger does not know rows that match.
        WarehouseInvalidError: The table no longer fits.
    """
    columns = get_format(stream.format).columns
    if not apply:
        with warehouse.reading() as con:
            if con is None:
                return ()
            return _Expiry(con, stream, columns, predicate).counted()
    with warehouse.writing() as con:
        return _Expiry(con, stream, columns, predicate).removed()


class _Expiry:
    """One call's statements over the stream's table."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, stream: StreamConfig, columns: Sequence[Column], predicate: str
    ) -> None:
        self._con = con
        self._stream = stream.name
        self._predicate = predicate
        self._own = [column.name for column in columns]
        found = con.execute(sql.READ_STREAM, {"stream": stream.name}).fetchall() if has_ledger(con) else []
        self._known = bool(found)
        name = TableName(schema=found[0][1], name=found[0][2]) if found else stream.table
        self._table = quote_table(name)
        types = {**METADATA_COLUMNS, **{column.name: column.type for column in columns}}
        if found:
            check_table(con, name, columns)
        check_predicate(con, predicate, types)

    def counted(self) -> tuple[Expired, ...]:
        return _expired(self._matching())

    def removed(self) -> tuple[Expired, ...]:
        if not self._known:
            return ()
        ensure_schema(self._con)
        rows = self._matching()
        self._delete(sql.DELETE_REMOVED, [self._predicate], sum(row[5] for row in rows))
        self._delete(sql.DELETE_BAD_REMOVED, self._of_metadata, sum(row[6] for row in rows))
        moves = [
            ClassMove(batch, topic, partition, -count, -bad, -offset_sum, -digest)
            for batch, topic, partition, _, _, count, bad, offset_sum, digest in rows
        ]
        booked = move_classes(self._con, self._stream, moves)
        if booked != len(rows):
            raise ProofFailedError(
                f"{booked} ranges were changed for {len(rows)} that rows match in; nothing was removed."
                f" `kafka-assets verify {self._stream}` says what is wrong with them."
            )
        # An earlier moment, and the same predicate said before, add nothing to it.
        is_before = self._predicate.startswith(_BEFORE)
        changed(
            self._con,
            sql.DELETE_REMOVALS,
            stream=self._stream,
            predicate=self._predicate,
            prefix=_BEFORE if is_before else None,
        )
        changed(self._con, sql.INSERT_REMOVAL, stream=self._stream, predicate=self._predicate, now=utc_now())
        return _expired(rows)

    def _delete(self, statement: str, predicates: Sequence[str], counted: int) -> None:
        named = {"stream": self._stream} if "$stream" in statement else {}
        text = statement.format(table=self._table, removed=removed_condition(predicates))
        deleted = changed(self._con, text, **named)
        if deleted != counted:
            raise ProofFailedError(
                f"{deleted} rows match, and {counted} of them are in ranges of the ledger; nothing was removed."
                f" `kafka-assets verify {self._stream}` says what is wrong with the others."
            )

    @cached_property
    def _of_metadata(self) -> tuple[str, ...]:
        return of_metadata(self._con, [self._predicate])

    def _matching(self) -> list[tuple[Any, ...]]:
        if not self._known:
            return []
        # Where it fails on a row it says so now, when a person can still change it.
        self._run(f"SELECT count(*) FROM {self._table} WHERE (\n{self._predicate}\n)")  # noqa: S608  as above
        return self._run(
            sql.MATCHING_ROWS.format(
                table=self._table,
                digest=digest_expression(self._own),
                removed=removed_condition([self._predicate]),
                bad_digest=digest_expression(BAD_COLUMNS),
                bad_removed=removed_condition(self._of_metadata),
            ),
            {"stream": self._stream},
        )

    def _run(self, statement: str, named: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
        try:
            return self._con.execute(statement, named).fetchall()
        except (
            duckdb.ConversionException,
            duckdb.InvalidInputException,
            duckdb.OutOfRangeException,
        ) as error:
            raise _refused(self._predicate, f"it fails on a row: {error}") from error


def _expired(rows: Sequence[tuple[Any, ...]]) -> tuple[Expired, ...]:
    return tuple(Expired(OffsetRange(*row[1:5]), row[5] + row[6]) for row in rows)


def check_predicate(con: duckdb.DuckDBPyConnection, predicate: str, types: dict[str, str]) -> None:
    """Check that a text is one boolean expression over a row of these columns, the same each time it is asked.

    Args:
        con: Any connection.
        predicate: The text.
        types: Name and DuckDB type of the columns.

    Raises:
        UsageInvalidError: With what is wrong, in DuckDB's words where it is DuckDB that refuses it.
    """
    if not predicate.strip():
        raise _refused(predicate, "it is empty")
    # Bare it must be a whole list of one; in brackets it can have no clause behind it.
    _parsed(con, f"SELECT {predicate}\n", predicate)
    tree = _parsed(con, f"SELECT (\n{predicate}\n)", predicate)
    known = {name.lower() for name in types}
    for node in _nodes(tree):
        if what := _NOT_IN_A_PREDICATE.get(str(node.get("class"))):
            raise _refused(predicate, f"{what} is no property of a row")
        if node.get("class") == "COLUMN_REF":
            first = str(node["column_names"][0]).lower()
            if first == _OF_THE_COMMIT:
                raise _refused(
                    predicate,
                    "_ingested_at changes with every replay, and what was removed by it would come back",
                )
            if first not in known and first.startswith(_OF_NOW):
                raise _refused(predicate, f"{first} gives another answer at another time; name a fixed one")
        if function := node.get("function_name"):
            _check_function(con, str(function), predicate)
    columns = ", ".join(f"NULL::{type_} AS {quote(name)}" for name, type_ in types.items())
    row = f"(SELECT {columns})"
    try:
        con.execute(f"SELECT 1 FROM {row} WHERE (\n{predicate}\n)").fetchall()  # noqa: S608  parsed above
        ((_, kind, *_),) = con.execute(f"DESCRIBE SELECT (\n{predicate}\n) FROM {row}").fetchall()  # noqa: S608
    except duckdb.Error as error:
        raise _refused(predicate, str(error)) from error
    if kind != "BOOLEAN":
        raise _refused(predicate, f"it gives {kind}, not BOOLEAN")


def _parsed(con: duckdb.DuckDBPyConnection, statement: str, predicate: str) -> dict[str, Any]:
    ((text,),) = con.execute("SELECT json_serialize_sql($statement)", {"statement": statement}).fetchall()
    parsed = json.loads(text)
    if parsed.get("error"):
        raise _refused(predicate, str(parsed.get("error_message")))
    statements = parsed["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    selected = node.get("select_list", ())
    if len(selected) != 1 or node.get("from_table", {}).get("type") != "EMPTY":
        raise _refused(predicate, "it is not one expression")
    return dict(selected[0])


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _check_function(con: duckdb.DuckDBPyConnection, name: str, predicate: str) -> None:
    found = con.execute(sql.FUNCTION_STABILITY, {"name": name.lower()}).fetchall()
    for stability, internal in found:
        # The macros that DuckDB brings have none.
        if not internal or stability not in (None, "CONSISTENT"):
            raise _refused(predicate, f"{name}() may give another answer at another time")


def _refused(predicate: str, why: str) -> UsageInvalidError:
    return UsageInvalidError(
        f"{predicate!r} cannot say which rows to remove: {why}. Nothing was removed. It must be one boolean SQL"
        " expression over the columns of the stream's table, such as \"_kafka_topic = 'orders' AND value LIKE"
        " '%x%'\"."
    )
