"""What was removed on purpose stays removed: the predicates of `expire`, for whoever commits later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets import ledger_sql as sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb


def removals_of(con: duckdb.DuckDBPyConnection, stream: str, batch: str) -> tuple[str, ...]:
    """Return the predicates that hold for a batch: those of removals made since it was planned."""
    found = con.execute(sql.READ_REMOVALS, {"stream": stream, "batch": batch}).fetchall()
    return tuple(predicate for (predicate,) in found)


def removed_condition(predicates: Sequence[str]) -> str:
    """Return SQL that is true for the rows that any of the predicates removes, false for all others.

    A predicate that fails on a row does not match it: it was checked on the rows there were, and later ones
    must not stop a commit.
    """
    # On lines of their own: a predicate may end in a comment.
    matches = [f"(TRY(\n{predicate}\n) IS TRUE)" for predicate in predicates]
    return f"({' OR '.join(matches)})" if matches else "false"
