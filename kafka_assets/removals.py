"""What was removed on purpose stays removed: the predicates of `expire`, for whoever commits later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb

from kafka_assets import ledger_sql as sql
from kafka_assets.ledger import METADATA_COLUMNS
from kafka_assets.statements import quote

if TYPE_CHECKING:
    from collections.abc import Sequence


def removals_of(con: duckdb.DuckDBPyConnection, stream: str, batch: str) -> tuple[str, ...]:
    """Return the predicates that hold for a batch: those of removals made since it was planned."""
    found = con.execute(sql.READ_REMOVALS, {"stream": stream, "batch": batch}).fetchall()
    return tuple(predicate for (predicate,) in found)


def of_metadata(con: duckdb.DuckDBPyConnection, predicates: Sequence[str]) -> tuple[str, ...]:
    """Return those that speak of nothing but the metadata columns, so that they hold for a bad record too.

    Of another one nobody knows whether it matches, until the record is decoded.
    """
    columns = ", ".join(f"NULL::{type_} AS {quote(name)}" for name, type_ in METADATA_COLUMNS.items())
    held = []
    # A connection of its own: what does not bind ends the transaction.
    with con.cursor() as binding:
        for predicate in predicates:
            try:
                binding.execute(f"SELECT 1 FROM (SELECT {columns}) WHERE (\n{predicate}\n)").fetchall()  # noqa: S608  checked by expire
            except duckdb.BinderException:
                continue
            held.append(predicate)
    return tuple(held)


def removed_condition(predicates: Sequence[str]) -> str:
    """Return SQL that is true for the rows that any of the predicates removes, false for all others.

    A predicate that fails on a row does not match it: it was checked on the rows there were, and later ones
    must not stop a commit.
    """
    # On lines of their own: a predicate may end in a comment.
    matches = [f"(TRY(\n{predicate}\n) IS TRUE)" for predicate in predicates]
    return f"({' OR '.join(matches)})" if matches else "false"
