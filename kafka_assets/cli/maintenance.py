"""The verbs that work on what is loaded: fetch it again, remove it, give it another name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from kafka_assets.cli.commands import table_of
from kafka_assets.cli.progress import progress_for
from kafka_assets.config import parse_timestamp_ms
from kafka_assets.errors import UsageInvalidError
from kafka_assets.scope import RANGE_FORM, parse_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka_assets.cli.session import Session
    from kafka_assets.config import StreamConfig
    from kafka_assets.offsets import OffsetRange
    from kafka_assets.operations.replay import Replay

NOT_APPLIED = 2
RANGES_SHOWN = 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(_: click.Context, __: click.Parameter, text: str | None) -> datetime | None:
    """Read a time as in the streams file."""
    if text is None:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=parse_timestamp_ms(text))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"expected {error}") from error


@click.command()
@click.argument("stream")
@click.argument("batches", nargs=-1, metavar="[BATCH]...")
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar=RANGE_FORM,
    help="Offsets of the current incarnation, widened to whole planned ranges.",
)
@click.option(
    "--since",
    callback=_moment,
    metavar="T",
    help="Ranges with records (their _kafka_timestamp) from this time on, like 2026-01-01T00:00:00Z.",
)
@click.option("--until", callback=_moment, metavar="T", help="Ranges with records before this time.")
@click.option("--merge", is_flag=True, help="Keep rows that Kafka no longer gives back, replace the others.")
@click.pass_obj
def replay(
    session: Session,
    stream: str,
    batches: tuple[str, ...],
    ranges: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    *,
    merge: bool,
) -> None:
    """Fetch batches, ranges or a time again, replace their rows.

    Exactly these rows are replaced, in one transaction for each batch. A batch that is only planned is loaded. Where
    Kafka no longer gives back a row that is there, nothing of that batch is changed. Rows that were removed on purpose
    stay removed.
    """
    named = [bool(batches), bool(ranges), since is not None or until is not None]
    if sum(named) != 1:
        raise UsageInvalidError(
            "replay needs what to fetch again, in one of three ways: the keys of batches, like 20261123T140512042Z,"
            f" or `--range {RANGE_FORM}`, any number of them, or `--since T` and `--until T`, one or both"
        )
    if since is not None and until is not None and since >= until:
        raise UsageInvalidError("replay --since must be before --until, which is exclusive")
    asked = [parse_range(text) for text in ranges]
    from kafka_assets.operations import replay as operation  # noqa: PLC0415  imports Dagster: half a second

    chosen = session.config.stream(stream)
    if batches:
        replays = operation.of_batches(chosen, session.warehouse, batches)
    elif asked:
        replays = operation.of_ranges(chosen, session.warehouse, asked)
    else:
        replays = operation.of_times(chosen, session.warehouse, since, until)
    beyond = operation.widened(asked, replays) if asked else ()
    _say_what(session, stream, replays, beyond, whole=bool(batches))
    from kafka_assets.cli.execution import execution_of  # noqa: PLC0415  imports Dagster: half a second

    runtime, executor, _ = execution_of(session)
    found: list[dict[str, Any]] = []

    def work(stream: StreamConfig) -> dict[str, Any]:
        with progress_for(session, f"replay {stream.name}") as progress:
            done, error = operation.run_replays(
                stream, runtime, executor, replays, merge_rows=merge, progress=progress
            )
        found.extend({**_place(one.range), "replaced": one.rows} for one in done)
        return {"ranges": found, "error": error}

    answers = session.each([chosen], work, {"ranges": []})
    if session.as_json:
        session.answer({"streams": answers})
        return
    _show(session, f"{stream}: replayed", ("topic", "partition", "from", "until", "replaced"), found)


def _say_what(
    session: Session, name: str, replays: Sequence[Replay], beyond: Sequence[OffsetRange], *, whole: bool
) -> None:
    """Say which offsets are read again: as many as were asked for, or more, since planned ranges stay whole."""
    if not replays:
        session.say(f"{name}: no planned range has such records, so there is nothing to replay")
    if not replays or whole:
        return
    size = sum(replay.offsets for replay in replays)
    count = sum(len(replay.ranges) for replay in replays)
    session.say(
        f"{name}: {count} planned ranges of {len(replays)} batches, {size:,} offsets, are fetched again"
    )
    if beyond:
        session.say(f"{name}: planned ranges stay whole, so these are fetched again too: {_listed(beyond)}")
    for replay in replays:
        if not replay.batch.generation:
            session.say(f"{name}: batch {replay.batch.batch} is only planned: it is loaded, all of it")


@click.command()
@click.argument("stream")
@click.option(
    "--before",
    callback=_moment,
    metavar="T",
    help="Rows whose _kafka_timestamp is before this time, like 2026-01-01T00:00:00Z.",
)
@click.option(
    "--where", "predicate", metavar="SQL", help="Rows of which this boolean SQL expression is true."
)
@click.option("--yes", is_flag=True, help="Do it; without it, show what would be removed and exit 2.")
@click.pass_obj
def expire(
    session: Session, stream: str, before: datetime | None, predicate: str | None, *, yes: bool
) -> None:
    """Remove rows on purpose, by age or by what is in them.

    They are deleted and booked as removed in one transaction, and stay removed whatever is replayed later. It holds
    for the batches planned so far, not for those planned later.
    """
    if (before is None) == (predicate is None):
        raise UsageInvalidError("expire needs either --before T or --where SQL, which say what to remove")
    chosen = session.config.stream(stream)

    def work(stream: StreamConfig) -> dict[str, Any]:
        from kafka_assets.operations import expire as operation  # noqa: PLC0415  imports DuckDB

        text = predicate if predicate is not None else operation.before(before) if before else ""
        expired = operation.expire(stream, session.warehouse, text, apply=yes)
        ranges = [{**_place(one.range), "removed": one.rows} for one in expired]
        removed = sum(one.rows for one in expired)
        if not yes:
            session.say(
                f"{stream.name}: {removed:,} rows match and nothing was changed. With --yes they are removed."
            )
            session.worsen(NOT_APPLIED)
        return {"applied": yes, "predicate": text, "removed": removed, "ranges": ranges}

    empty: dict[str, Any] = {"applied": False, "predicate": predicate, "removed": 0, "ranges": []}
    answers = session.each([chosen], work, empty)
    if session.as_json:
        session.answer({"streams": answers})
        return
    answer = answers[stream]
    if answer["error"] is None:
        title = f"{stream}: {answer['removed']:,} rows {'removed' if yes else 'would be removed'}"
        _show(session, title, ("topic", "partition", "from", "until", "removed"), answer["ranges"])


@click.command()
@click.argument("old")
@click.argument("new")
@click.pass_obj
def rename(session: Session, old: str, new: str) -> None:
    """Have everything follow a stream's new name.

    Rename it in the streams file first: its ledger, its table (unless `table:` names one) and its Dagster keys then
    follow.
    """
    chosen = session.config.stream(new)

    def work(stream: StreamConfig) -> dict[str, Any]:
        from kafka_assets.cli.execution import execution_of  # noqa: PLC0415  imports Dagster: half a second
        from kafka_assets.operations.rename import rename as operation  # noqa: PLC0415  imports Dagster

        runtime, _, instance = execution_of(session)
        done = operation(old, stream, runtime, instance)
        table = (
            f"table {done.table} stays"
            if done.table == done.table_before
            else f"table {done.table_before} is {done.table} now"
        )
        session.say(
            f"{old} is {stream.name} now: its ledger, {done.batches:,} batches and their keys followed, {table}."
            " Reload the code location in Dagster, so that no sensor of the old name goes on."
        )
        return {"renamed": old, "table": str(done.table), "batches": done.batches}

    answers = session.each([chosen], work, {"renamed": None, "table": None, "batches": 0})
    if session.as_json:
        session.answer({"streams": answers})


def _place(one: OffsetRange) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "partition": one.partition,
        "from": one.from_offset,
        "until": one.until_offset,
    }


def _listed(ranges: Sequence[OffsetRange]) -> str:
    shown = ", ".join(map(str, ranges[:RANGES_SHOWN]))
    more = len(ranges) - RANGES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _show(session: Session, title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    session.console.print(table_of(title, columns, [[row[column] for column in columns] for row in rows]))
