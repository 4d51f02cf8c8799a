"""The commands: what each does, and its answer to people and to programs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from kafka_assets import coverage, ledger
from kafka_assets.cli.progress import progress_for
from kafka_assets.errors import KafkaAssetsError, ProofFailedError, TopicMissingError, error_from_text
from kafka_assets.formats import get_format
from kafka_assets.offsets import TopicPartition, is_other_topic
from kafka_assets.planner import check_table, propose, survey, utc_now
from kafka_assets.statements import quote_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kafka_assets.cli.session import Session
    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import PositionReport
    from kafka_assets.orchestration.ingest import Ingested
    from kafka_assets.planning import LogBounds

CELL_WIDTH = 80
ALWAYS_SHOWN = ("loaded", "undeliverable", "pending")
CLASSES = ("loaded", "filtered", "quarantined", "undeliverable", "lost", "removed", "pending")


def plan(session: Session, names: Sequence[str]) -> None:
    """Show what a tick would plan now."""

    def work(stream: StreamConfig) -> dict[str, Any]:
        with session.log(stream) as log:
            seen = survey(stream, session.warehouse, log)
            proposed = propose(stream, seen, log, now=utc_now())
        check_table(stream, session.warehouse)
        ranges = proposed.batches[0] if proposed.batches else ()
        answer: dict[str, Any] = {"batch": None, "reason": proposed.reason or proposed.limit}
        if ranges:
            answer["batch"] = {
                "ranges": [
                    {
                        "topic": planned.range.topic,
                        "partition": planned.range.partition,
                        "from": planned.range.from_offset,
                        "until": planned.range.until_offset,
                    }
                    for planned in ranges
                ],
                "records_at_most": sum(planned.range.size for planned in ranges),
            }
        if proposed.stops:
            answer["error"] = _first_error(f"{stop.code}: {stop.message}" for stop in proposed.stops)
        return answer

    answers = session.each(session.streams(names), work, {"batch": None, "reason": None})
    if session.as_json:
        session.answer({"streams": answers})
        return
    for name, answer in answers.items():
        if answer["batch"] is None:
            if answer["reason"]:
                session.console.print(f"{name}: no batch. {answer['reason']}", markup=False, highlight=False)
            continue
        rows = [
            [row[key] for key in ("topic", "partition", "from", "until")] for row in answer["batch"]["ranges"]
        ]
        title = f"{name}: next batch, at most {answer['batch']['records_at_most']:,} records"
        session.console.print(table_of(title, ("topic", "partition", "from", "until"), rows))
        if answer["reason"]:
            session.console.print(answer["reason"], markup=False, highlight=False)


def ingest(session: Session, names: Sequence[str], timeout: float | None) -> None:
    """Drain streams up to the log ends seen now."""
    from kafka_assets.cli.head_start import fetcher_for  # noqa: PLC0415  imports what fetches: a tenth of a second

    streams = session.streams(names)
    with fetcher_for(session, streams[0]) as fetcher:
        # They import Dagster, which takes two seconds.
        from kafka_assets.cli.execution import execution_of  # noqa: PLC0415
        from kafka_assets.orchestration.ingest import ingest as drain  # noqa: PLC0415

        runtime, executor, _ = execution_of(session)

        def work(stream: StreamConfig) -> dict[str, Any]:
            with progress_for(session, f"ingest {stream.name}") as progress:
                done = drain(stream, runtime, executor, fetcher=fetcher, progress=progress, timeout=timeout)
                return ingested_answer(done)

        answers = session.each(streams, work, {**ingested_answer(None)})
    if session.as_json:
        session.answer({"streams": answers})
        return
    show_ingested(session, "ingested", answers)


def show_ingested(session: Session, title: str, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Show what runs of batches committed, a line for each stream."""
    columns = (
        "stream",
        "batches",
        "records",
        "rows",
        "quarantined",
        "undeliverable",
        "lost",
        "seconds",
        "records/s",
    )
    rows = [
        [
            name,
            len(answer["batches"]),
            answer["records"],
            answer["rows"],
            answer["quarantined"],
            answer["undeliverable"],
            answer["lost"],
            answer["seconds"],
            round(answer["records"] / answer["seconds"]) if answer["seconds"] else 0,
        ]
        for name, answer in answers.items()
    ]
    session.console.print(table_of(title, columns, rows))


def ingested_answer(result: Ingested | None) -> dict[str, Any]:
    counts = ("records", "rows", "quarantined", "filtered", "undeliverable", "lost", "seconds")
    if result is None:
        return {"batches": [], **dict.fromkeys(counts, 0)}
    return {
        "batches": result.batches,
        **{name: getattr(result, name) for name in counts},
        "error": result.error,
    }


def status(session: Session, names: Sequence[str]) -> None:
    """Show where every topic-partition of a stream stands."""

    def work(stream: StreamConfig) -> dict[str, Any]:
        with session.warehouse.reading() as connection:
            positions = ledger.positions_report(connection, stream.name)
            counts = ledger.batch_counts(connection, stream.name)
            quarantined = ledger.count_quarantined(connection, stream.name)
        answer: dict[str, Any] = {
            "table": str(stream.table),
            "batches": asdict(counts),
            "quarantined": quarantined,
        }
        bounds = {}
        try:
            with session.log(stream) as log:
                found = log.topic_partitions(stream.selection)
                bounds = log.bounds(found.partitions, topic_ids=found.topic_ids)
            if found.missing:
                answer["error"] = TopicMissingError(
                    f"{', '.join(found.missing)} is not there, or may not be seen with these credentials."
                    f" `kafka-assets plan {stream.name}` says what follows from it."
                )
        except KafkaAssetsError as error:
            answer["error"] = error
        answer["partitions"] = _status_rows(positions, bounds)
        return answer

    answers = session.each(
        session.streams(names),
        work,
        {"table": None, "batches": asdict(ledger.BatchCounts()), "quarantined": 0, "partitions": []},
    )
    if session.as_json:
        session.answer({"streams": answers})
        return
    columns = (
        "topic",
        "partition",
        "log_start",
        "end",
        "planned_until",
        "committed_until",
        "hole",
        "unstable",
        "lag",
    )
    for name, answer in answers.items():
        if answer["table"] is None:
            continue
        counts = ", ".join(f"{count:,} {state}" for state, count in answer["batches"].items())
        if answer["quarantined"]:
            counts += f"; {answer['quarantined']:,} records in quarantine"
        rows = [[row[column] for column in columns] for row in answer["partitions"]]
        session.console.print(table_of(f"{name} into {answer['table']}: batches {counts}", columns, rows))


def _status_rows(
    positions: Sequence[PositionReport], bounds: Mapping[TopicPartition, LogBounds]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    latest = {TopicPartition(one.topic, one.partition): one for one in positions}
    unplanned = dict(bounds)
    for one in positions:
        at = TopicPartition(one.topic, one.partition)
        bound = bounds.get(at) if latest[at] is one else None
        if bound and is_other_topic(one.topic_id, bound.topic_id):
            # What the broker has is another log.
            bound = None
        if bound:
            del unplanned[at]
        rows.append(
            {
                "topic": one.topic,
                "topic_id": one.topic_id,
                "incarnation": one.incarnation,
                "partition": one.partition,
                "log_start": bound.log_start if bound else None,
                "end": bound.end if bound else None,
                "high_watermark": bound.high_watermark if bound else None,
                "start": one.start_offset,
                "planned_until": one.planned_until,
                "committed_until": one.committed_until,
                "hole": one.hole,
                "unstable": bound.high_watermark - bound.end if bound else None,
                "lag": max(0, bound.end - one.committed_until - one.hole) if bound else None,
            }
        )
    for partition, bound in sorted(unplanned.items()):
        rows.append(
            {
                "topic": partition.topic,
                "topic_id": bound.topic_id,
                "incarnation": latest[partition].incarnation + 1 if partition in latest else 0,
                "partition": partition.partition,
                "log_start": bound.log_start,
                "end": bound.end,
                "high_watermark": bound.high_watermark,
                "start": None,
                "planned_until": None,
                "committed_until": None,
                "hole": 0,
                "unstable": bound.high_watermark - bound.end,
                "lag": bound.end - bound.log_start,
            }
        )
    return rows


def verify(session: Session, names: Sequence[str], *, deep: bool = False) -> None:
    """Prove coverage from the ledger and the table; deep, also against what Kafka still has."""

    def work(stream: StreamConfig) -> dict[str, Any]:
        return _proven(session, stream, deep=deep)

    answers = session.each(session.streams(names), work, {"ok": False, "problems": [], "partitions": []})
    if session.as_json:
        session.answer({"ok": all(answer["ok"] for answer in answers.values()), "streams": answers})
        return
    for name, answer in answers.items():
        if answer["error"] and not answer["problems"]:
            continue
        session.console.print(coverage_table(name, answer["partitions"]))
        for problem in answer["problems"]:
            session.console.print(f"  {problem}", style="red", markup=False)
        if answer["ok"]:
            session.console.print(
                f"{name}: the proof holds, every planned offset is accounted for once", style="green"
            )
        if "compared" in answer:
            session.console.print(
                f"{name}: {answer['compared']:,} records fetched again and compared;"
                f" {answer['gone']:,} committed offsets are no longer within Kafka's reach",
                highlight=False,
            )


def _proven(session: Session, stream: StreamConfig, *, deep: bool) -> dict[str, Any]:
    with session.warehouse.reading() as connection:
        proof = coverage.verify(connection, stream.name, get_format(stream.format).columns)
    answer: dict[str, Any] = {
        "ok": proof.ok,
        "problems": list(proof.problems),
        "partitions": [one.to_dict() for one in proof.partitions],
    }
    try:
        if deep:
            answer |= _compared(session, stream, answer["problems"])
    except KafkaAssetsError as error:
        return {**answer, "ok": False, "error": error}
    if not answer["ok"]:
        answer["error"] = ProofFailedError(
            f"the coverage proof of stream {stream.name!r} does not hold: {len(answer['problems'])} problems,"
            f" the first: {answer['problems'][0]}"
        )
    return answer


def _compared(session: Session, stream: StreamConfig, problems: Sequence[str]) -> dict[str, Any]:
    from kafka_assets.operations.deep_verify import verify_deep  # noqa: PLC0415  imports the Kafka client

    with session.log(stream) as log, progress_for(session, f"verify {stream.name}") as progress:
        found = verify_deep(stream, session.warehouse, log, progress=progress)
    told = [*problems, *found.problems]
    return {"ok": not told, "problems": told, "compared": found.records, "gone": found.gone}


def coverage_table(name: str, partitions: Sequence[Mapping[str, Any]]) -> Table:
    met = [one for one in CLASSES if one in ALWAYS_SHOWN or any(row[one] for row in partitions)]
    columns = ("topic", "partition", "from", "until", *met)
    rows = [[row[column] for column in columns] for row in partitions]
    return table_of(f"{name}: coverage, in offsets", columns, rows)


def head(session: Session, name: str, rows: int) -> None:
    """Show the first rows of a stream's table."""
    stream = session.config.stream(name)
    columns = ("_kafka_partition", "_kafka_offset", "_kafka_timestamp", *_own_columns(stream))
    listed = ", ".join(f'"{column}"' for column in columns)
    with session.warehouse.reading() as connection:
        found = (
            connection.execute(
                f"SELECT {listed} FROM {quote_table(stream.table)}"  # noqa: S608  names from the validated streams file
                " ORDER BY _kafka_partition, _kafka_offset LIMIT $1",
                [rows],
            ).fetchall()
            if connection
            else []
        )
    shown = [[_shortened(cell) for cell in row] for row in found]
    session.console.print(table_of(f"{name}: the first rows of table {stream.table}", columns, shown))


def _shortened(cell: object) -> object:
    if isinstance(cell, datetime):
        return cell.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:23]
    text = str(cell)
    return cell if isinstance(cell, int) or len(text) <= CELL_WIDTH else f"{text[: CELL_WIDTH - 1]}…"


def _own_columns(stream: StreamConfig) -> list[str]:
    return [column.name for column in get_format(stream.format).columns]


def version(session: Session) -> None:
    """Show versions."""
    import confluent_kafka  # noqa: PLC0415

    names = ("kafka-assets", "dagster", "confluent-kafka", "duckdb", "pyarrow", "numpy")
    versions = {name: version_of(name) for name in names}
    versions["librdkafka"] = confluent_kafka.libversion()[0]
    if session.as_json:
        session.answer(versions)
        return
    session.console.print(
        table_of("versions", ("package", "version"), [list(row) for row in versions.items()])
    )


def _first_error(texts: Iterable[str]) -> KafkaAssetsError:
    first, *more = list(texts)
    return error_from_text(first + "".join(f"\n{text}" for text in more))


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    # A title wider than its table would be wrapped.
    table = Table(title=title, title_justify="left", title_style="bold", min_width=len(title))
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: object) -> Text:
    # Not markup, whatever a record holds.
    return Text("" if value is None else f"{value:,}" if isinstance(value, int) else str(value))
