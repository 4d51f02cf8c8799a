"""The operator's verbs: what can be typed, and what each says before it acts."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from kafka_assets.cli.commands import ingested_answer, show_ingested, table_of
from kafka_assets.cli.progress import progress_for
from kafka_assets.config import AtTimestamp, Earliest, Latest, parse_timestamp_ms
from kafka_assets.errors import UsageInvalidError, error_from_text
from kafka_assets.offsets import TopicPartition
from kafka_assets.operations.moves import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kafka_assets.cli.session import Session
    from kafka_assets.config import StreamConfig
    from kafka_assets.fetcher import Fetcher
    from kafka_assets.operations.backfill import History
    from kafka_assets.operations.moves import Change, Settlement
    from kafka_assets.operations.reset import Proposal
    from kafka_assets.orchestration.execution import RunExecutor
    from kafka_assets.orchestration.ingest import Ingested
    from kafka_assets.orchestration.runtime import Runtime
    from kafka_assets.orchestration.settling import SettlingRuns

NOT_APPLIED = 2
RANGES_SHOWN = 10
TARGET = "earliest|latest|TIMESTAMP|TOPIC:PARTITION:OFFSET..."
HISTORY_TARGET = "earliest|TIMESTAMP|TOPIC:PARTITION:OFFSET..."

_PLACE = re.compile(r"([A-Za-z0-9._-]+):(\d{1,10}):(\d{1,19})")
_LARGEST_OFFSET = 2**63 - 1
_COLUMNS = ("topic", "partition", "incarnation", "from", "to", "skipped", "lost", "backfill")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="STREAM")
@click.option(
    "--to",
    "targets",
    multiple=True,
    required=True,
    metavar=TARGET,
    help="The next offset to plan; a TIMESTAMP is like 2026-01-01T00:00:00Z.",
)
@click.option(
    "--keep-hole",
    is_flag=True,
    help="Plan what is skipped as backfill batches, to run later, instead of booking it as lost.",
)
@click.option("--yes", is_flag=True, help="Do it; without it, show what would happen and exit 2.")
@click.pass_obj
def reset(
    session: Session, words: tuple[str, ...], targets: tuple[str, ...], *, keep_hole: bool, yes: bool
) -> None:
    """Go on after loss, truncation or recreation of a topic.

    Moves the next planned offset forwards, or to a place in the new incarnation of a topic, and settles open
    batches that can no longer be fetched: what Kafka still has is loaded, the rest is booked as lost. What is skipped
    is booked as lost too. Backwards within one incarnation is refused: that is `replay`.
    """
    name, target = _stream_and_target(words, targets, "--to")
    stream = session.config.stream(name)

    def work(stream: StreamConfig) -> dict[str, Any]:
        return _reset(session, stream, target, keep_hole=keep_hole, yes=yes)

    answers = session.each([stream], work, {"applied": False, "changes": []})
    if session.as_json:
        session.answer({"streams": answers})


def _reset(
    session: Session, stream: StreamConfig, target: Target, *, keep_hole: bool, yes: bool
) -> dict[str, Any]:
    from kafka_assets.operations import reset as operation  # noqa: PLC0415  the Kafka client and DuckDB

    with session.log(stream) as log:
        proposal = operation.propose(stream, session.warehouse, log, target, keep_hole=keep_hole)
        _show_reset(session, stream, proposal)
        if not yes:
            session.say(f"{stream.name}: nothing was changed. With --yes this is done.")
            session.worsen(NOT_APPLIED)
            return _reset_answer(proposal, applied=False)
        done = operation.apply(
            stream,
            session.warehouse,
            log,
            target,
            keep_hole=keep_hole,
            # Without a batch to settle no Dagster instance is needed.
            open_runs=lambda: _settling_runs(session, stream),
        )
    session.say(f"{stream.name}: done, {len(done.settled)} batches settled")
    return {
        **_reset_answer(done.proposal, applied=True),
        "settled": [batch.batch for batch in done.settled],
        "batches": list(done.holes),
        "error": done.error,
    }


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="STREAM")
@click.option(
    "--from",
    "targets",
    multiple=True,
    metavar=HISTORY_TARGET,
    help="How far back; a TIMESTAMP is like 2026-01-01T00:00:00Z.",
)
@click.option(
    "--pending",
    is_flag=True,
    help="Plan nothing, run the backfill batches that wait: cut short, or kept by `reset --keep-hole`.",
)
@click.option("--newest-first", is_flag=True, help="Begin with the batches next to the first offset.")
@click.pass_obj
def backfill(
    session: Session, words: tuple[str, ...], targets: tuple[str, ...], *, pending: bool, newest_first: bool
) -> None:
    """Read the history before a stream's first offset, in batches.

    Each is a Dagster run, and is run once whatever happens: cut short, `--pending` runs the rest.
    """
    if pending == bool(targets):
        raise UsageInvalidError(
            f"backfill needs either `--from {HISTORY_TARGET}`, to plan and run history, or `--pending`, to run what is"
            " planned"
        )
    name, target = _stream_and_target(words, targets, "--from") if targets else (_only(words), None)
    if target is not None and isinstance(target.everywhere, Latest):
        raise UsageInvalidError("backfill --from latest means nothing: history lies before the first offset")
    stream = session.config.stream(name)
    from kafka_assets.cli.execution import execution_of  # noqa: PLC0415  imports Dagster: half a second
    from kafka_assets.fetcher import Fetcher  # noqa: PLC0415  imports what fetches

    runtime, executor, _ = execution_of(session)
    fetcher = Fetcher(session.config.path)

    def work(stream: StreamConfig) -> dict[str, Any]:
        return _backfill(session, stream, runtime, executor, fetcher, target, newest_first=newest_first)

    with closing(fetcher):
        answers = session.each([stream], work, ingested_answer(None))
    if session.as_json:
        session.answer({"streams": answers})
        return
    show_ingested(session, "backfilled", answers)


def _backfill(
    session: Session,
    stream: StreamConfig,
    runtime: Runtime,
    executor: RunExecutor,
    fetcher: Fetcher,
    target: Target | None,
    *,
    newest_first: bool,
) -> dict[str, Any]:
    from kafka_assets.operations.backfill import plan_history, waiting  # noqa: PLC0415  imports DuckDB
    from kafka_assets.orchestration.ingest import run_backfill  # noqa: PLC0415  imports Dagster

    history: History | None = None
    if target is None:
        keys = waiting(stream, session.warehouse)
    else:
        with session.log(stream) as log:
            history = plan_history(stream, session.warehouse, log, target, newest_first=newest_first)
        keys = history.keys
        _show_history(session, stream, history)
    if not keys and not (history and history.stops):
        session.say(f"{stream.name}: no backfill batch to run")
    with progress_for(session, f"backfill {stream.name}") as progress:
        result: Ingested = run_backfill(stream, runtime, executor, keys, fetcher=fetcher, progress=progress)
    if result.error is None and history and history.stops:
        result.error = error_from_text("\n".join(f"{stop.code}: {stop.message}" for stop in history.stops))
    return ingested_answer(result)


def _settling_runs(session: Session, stream: StreamConfig) -> SettlingRuns:
    from kafka_assets.cli.execution import execution_of  # noqa: PLC0415  imports Dagster: half a second
    from kafka_assets.orchestration.settling import SettlingRuns  # noqa: PLC0415  imports Dagster

    runtime, executor, instance = execution_of(session)
    return SettlingRuns(stream, runtime, instance, executor)


def _stream_and_target(words: Sequence[str], targets: Sequence[str], option: str) -> tuple[str, Target]:
    """Read `STREAM --to A:0:1 B:0:2`: places may follow one option, or each its own."""
    places = [*targets, *(word for word in words if ":" in word)]
    return _only([word for word in words if ":" not in word]), _target(places, option)


def _only(words: Sequence[str]) -> str:
    if len(words) != 1:
        named = " ".join(words) or "none"
        raise UsageInvalidError(f"exactly one stream is to be named, not {len(words)}: {named}")
    return words[0]


def _target(texts: Sequence[str], option: str) -> Target:
    """Read where an operator points to.

    Raises:
        UsageInvalidError: It is nothing of what may be said, or two things at once.
    """
    typed = " ".join(texts)
    if len(texts) == 1:
        (text,) = texts
        if text in ("earliest", "latest"):
            return Target(typed, Earliest() if text == "earliest" else Latest())
        if not _PLACE.fullmatch(text):
            try:
                return Target(typed, AtTimestamp(parse_timestamp_ms(text)))
            except ValueError as error:
                raise UsageInvalidError(
                    f"{option} {text!r} is none of {TARGET}. A TIMESTAMP is {error}; a place is like"
                    " orders:0:1200."
                ) from None
    partitions: dict[TopicPartition, int] = {}
    for text in texts:
        found = _PLACE.fullmatch(text)
        if found is None:
            raise UsageInvalidError(
                f"{option} {text!r} is no TOPIC:PARTITION:OFFSET, like orders:0:1200; only these may be several."
            )
        topic, partition, offset = found.groups()
        tp = TopicPartition(topic, int(partition))
        if tp in partitions:
            raise UsageInvalidError(f"{option} names {tp} twice; one offset is to be given of it.")
        if int(offset) > _LARGEST_OFFSET:
            raise UsageInvalidError(f"{option} {text!r}: no offset is that large.")
        partitions[tp] = int(offset)
    return Target(typed, None, partitions)


def _reset_answer(proposal: Proposal, *, applied: bool) -> dict[str, Any]:
    return {
        "applied": applied,
        "changes": [_change_row(change) for change in proposal.moves.changes],
        "settles": [_settlement_row(one) for one in proposal.settlements],
    }


def _change_row(change: Change) -> dict[str, Any]:
    return {
        "topic": change.topic_partition.topic,
        "partition": change.topic_partition.partition,
        "incarnation": change.incarnation,
        "from": change.from_offset,
        "to": change.to_offset,
        "skipped": change.skipped,
        "lost": sum(one.size for one in change.lost),
        "backfill": change.hole.size if change.hole else 0,
    }


def _settlement_row(settlement: Settlement) -> dict[str, Any]:
    return {
        "batch": settlement.batch,
        **{
            name: [
                {
                    "topic": planned.range.topic,
                    "partition": planned.range.partition,
                    "from": planned.range.from_offset,
                    "until": planned.range.until_offset,
                }
                for planned in ranges
            ]
            for name, ranges in (("fetched", settlement.readable), ("lost", settlement.gone))
        },
    }


def _show_reset(session: Session, stream: StreamConfig, proposal: Proposal) -> None:
    changes = proposal.moves.changes
    if not session.as_json and changes:
        rows = [[_change_row(change)[column] for column in _COLUMNS] for change in changes]
        session.console.print(table_of(f"{stream.name}: the next offsets to be planned", _COLUMNS, rows))
    for line in _told(session, stream, proposal):
        session.say(f"{stream.name}: {line}")


def _told(session: Session, stream: StreamConfig, proposal: Proposal) -> Iterator[str]:
    from kafka_assets.batch_lock import holder, is_held  # noqa: PLC0415  the Kafka client and DuckDB

    for change in proposal.moves.changes:
        if change.begins:
            yield (
                f"{change.topic_partition}: {change.begins}. Incarnation {change.incarnation} begins: what lies"
                f" from offset {change.to_offset} on is read, whatever was read of the log as it was before."
            )
    lost = [one for change in proposal.moves.changes for one in change.lost]
    holes = [change.hole for change in proposal.moves.changes if change.hole]
    if lost:
        yield f"{sum(one.size for one in lost)} offsets are booked as lost: {_some(lost)}"
    if holes:
        yield (
            f"{sum(one.size for one in holes)} offsets are planned as {len(proposal.moves.plan.batches)} backfill"
            f" batches, for `kafka-assets backfill {stream.name} --pending`: {_some(holes)}"
        )
    for settlement in proposal.settlements:
        gone = [planned.range for planned in settlement.gone]
        left = [planned.range for planned in settlement.readable]
        parts = [f"{sum(one.size for one in gone)} offsets are booked as lost: {_some(gone)}"] if gone else []
        parts += [f"{sum(one.size for one in left)} are fetched: {_some(left)}"] if left else []
        yield f"batch {settlement.batch} can no longer be fetched as planned and is settled; {'; '.join(parts)}"
        place = (session.warehouse.staging, stream.name, settlement.batch)
        if is_held(*place):
            yield (
                f"batch {settlement.batch} is being executed just now, by"
                f" {holder(*place) or 'another process'}: as long as that is so, the reset is refused"
            )
    if not (proposal.moves.changes or proposal.settlements):
        yield "nothing is to be changed: no position moves, and every open batch can be fetched"


def _show_history(session: Session, stream: StreamConfig, history: History) -> None:
    ranges = [planned.range for batch in history.ranges for planned in batch]
    if ranges:
        session.say(
            f"{stream.name}: {sum(one.size for one in ranges)} offsets before the first planned ones are"
            f" planned as {len(history.keys)} backfill batches"
        )


def _some(ranges: Sequence[object]) -> str:
    more = f" and {len(ranges) - RANGES_SHOWN} more" if len(ranges) > RANGES_SHOWN else ""
    return ", ".join(map(str, ranges[:RANGES_SHOWN])) + more
