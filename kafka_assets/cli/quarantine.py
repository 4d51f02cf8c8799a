"""`quarantine`: what can be typed about bad records, and what is shown of them."""

from __future__ import annotations

import base64
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from kafka_assets.cli.commands import table_of
from kafka_assets.errors import UsageInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka_assets.cli.session import Session
    from kafka_assets.config import StreamConfig

LISTED = 100
SHOWN = 20
SHOWN_BYTES = 1000
COLUMNS = ("topic", "partition", "offset", "batch", "stage", "size", "error")

STREAMS = click.argument("streams", nargs=-1, metavar="[STREAM]...")


@click.group(invoke_without_command=True)
@click.pass_context
def quarantine(context: click.Context) -> None:
    """Look at bad records, and decode them again.

    A stream with `on_bad_record: quarantine` sets records aside that do not decode, and loads the others. They are in
    the view kafka_assets.quarantine of the warehouse.
    """
    if context.invoked_subcommand is None:
        raise UsageInvalidError("quarantine needs what to do: list, show or retry (see its --help)")


@quarantine.command(name="list")
@STREAMS
@click.pass_obj
def list_(session: Session, streams: tuple[str, ...]) -> None:
    """List bad records and what is wrong with each."""

    def work(stream: StreamConfig) -> dict[str, Any]:
        return {"records": _records(session, stream)}

    answers = session.each(session.streams(streams), work, {"records": []})
    if session.as_json:
        session.answer({"streams": answers})
        return
    for name, answer in answers.items():
        records = answer["records"]
        rows = [[record[column] for column in COLUMNS] for record in records[:LISTED]]
        title = f"{name}: {len(records):,} records in quarantine"
        if len(records) > LISTED:
            title += f", the first {LISTED} of them"
        session.console.print(table_of(title, COLUMNS, rows))


@quarantine.command()
@STREAMS
@click.pass_obj
def show(session: Session, streams: tuple[str, ...]) -> None:
    """Show bad records with their keys, headers and values.

    With --json all of them, bytes as base64; else the first 20, and of each value up to 1000 bytes.
    """

    def work(stream: StreamConfig) -> dict[str, Any]:
        return {"records": _records(session, stream, contents=True, limit=None if session.as_json else SHOWN)}

    answers = session.each(session.streams(streams), work, {"records": []})
    if session.as_json:
        session.answer({"streams": {name: _encoded(answer) for name, answer in answers.items()}})
        return
    for name, answer in answers.items():
        for record in answer["records"]:
            for line in _told(name, record):
                session.console.print(line, markup=False, highlight=False, soft_wrap=True)


@quarantine.command()
@STREAMS
@click.pass_obj
def retry(session: Session, streams: tuple[str, ...]) -> None:
    """Decode bad records again in place, as the stream's format reads them now.

    In one transaction a stream: what decodes becomes rows of its batch, at its own offset. What is still bad stays in
    quarantine, and the exit code is 3.
    """
    empty = {"loaded": 0, "removed": 0, "quarantined": 0}

    def work(stream: StreamConfig) -> dict[str, Any]:
        from kafka_assets.operations import quarantine as operation  # noqa: PLC0415  imports DuckDB

        done = operation.retry(stream, session.warehouse)
        return {**{name: getattr(done, name) for name in empty}, "error": done.error}

    answers = session.each(session.streams(streams), work, empty)
    if session.as_json:
        session.answer({"streams": answers})
        return
    rows = [[name, *(answer[column] for column in empty)] for name, answer in answers.items()]
    session.console.print(table_of("decoded again", ("stream", *empty), rows))


def _records(
    session: Session, stream: StreamConfig, *, contents: bool = False, limit: int | None = None
) -> list[dict[str, Any]]:
    from kafka_assets.operations import quarantine as operation  # noqa: PLC0415  imports DuckDB

    with session.warehouse.reading() as connection:
        records = operation.listed(connection, stream.name, contents=contents, limit=limit)
    for record in records:
        for name in ("timestamp", "ingested_at"):
            moment = record[name]
            record[name] = None if moment is None else moment.astimezone(UTC).isoformat()
    return records


def _encoded(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {**answer, "records": [_record_encoded(record) for record in answer["records"]]}


def _record_encoded(record: Mapping[str, Any]) -> dict[str, Any]:
    headers = record["headers"]
    return {
        **record,
        "key": _base64(record["key"]),
        "headers": headers and [{"key": one["key"], "value": _base64(one["value"])} for one in headers],
        "value": _base64(record["value"]),
    }


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode("ascii")


def _told(stream: str, record: Mapping[str, Any]) -> list[str]:
    where = f"{record['topic']}[{record['partition']}]@{record['offset']} of batch {record['batch']}"
    lines = [
        f"{stream}: {where}, {record['timestamp'] or 'without a time'}",
        f"  {record['stage']}: {record['error']}",
        f"  key: {_shown(record['key'])}",
    ]
    lines += [f"  header {one['key']!r}: {_shown(one['value'])}" for one in record["headers"] or ()]
    return [*lines, f"  value, {record['size'] or 0:,} bytes: {_shown(record['value'])}"]


def _shown(content: bytes | None) -> str:
    if content is None:
        return "none"
    return f"{bytes(content[:SHOWN_BYTES])!r}" + ("…" if len(content) > SHOWN_BYTES else "")
