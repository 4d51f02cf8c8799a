"""`ingest`: drain a stream up to the log ends seen at the start, a Dagster run for each batch, in this process.

While one batch commits, the next ones are fetched ahead by a process of its own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kafka_assets import batches
from kafka_assets.errors import (
    AttemptsExhaustedError,
    FetchStalledError,
    KafkaAssetsError,
    RunFailedError,
    error_from_text,
)
from kafka_assets.ledger import PlanConflictError
from kafka_assets.orchestration.liveness import hold, release
from kafka_assets.orchestration.prefetch import adopt, offer, withdraw
from kafka_assets.planner import outstanding, propose, record, survey, utc_now
from kafka_assets.room import Room
from kafka_assets.scope import WHOLE
from kafka_assets.staging import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import dagster as dg

    from kafka_assets.config import StreamConfig
    from kafka_assets.fetcher import Fetcher
    from kafka_assets.ledger import BatchRow, Kind
    from kafka_assets.offsets import TopicPartition
    from kafka_assets.orchestration.execution import RunExecutor
    from kafka_assets.orchestration.runtime import Runtime
    from kafka_assets.planner import Survey
    from kafka_assets.scope import ReplayScope

WAIT_SECONDS = 0.2
AHEAD = 1
"""Batches that wait, fetched, beside the one that is being committed."""


class Progress(Protocol):
    """Where the work says how far it is."""

    def total(self, offsets: int) -> None:
        """So many offsets are to be committed in all."""

    def advance(self, offsets: int) -> None:
        """So many more are committed."""

    def say(self, text: str) -> None:
        """Something a person waiting should know."""


@dataclass(slots=True)
class Ingested:
    """What `ingest` committed of one stream; counts are of offsets, `rows` of rows."""

    batches: list[str] = field(default_factory=list)
    records: int = 0
    rows: int = 0
    quarantined: int = 0
    filtered: int = 0
    undeliverable: int = 0
    lost: int = 0
    seconds: float = 0.0
    error: KafkaAssetsError | None = None

    def add(self, batch: BatchRow) -> None:
        self.batches.append(batch.batch)
        self.records += batch.records
        self.rows += batch.rows
        for outcome in batch.outcomes:
            self.quarantined += outcome.quarantined
            self.filtered += outcome.filtered
            self.undeliverable += outcome.undeliverable
            self.lost += outcome.lost


def ingest(
    stream: StreamConfig,
    runtime: Runtime,
    executor: RunExecutor,
    *,
    fetcher: Fetcher,
    progress: Progress,
    timeout: float | None = None,
) -> Ingested:
    """Plan and run batches until every live offset below the log ends seen first is committed.

    Never raises a `KafkaAssetsError`: what was committed before it is part of the answer, which carries it.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    drain = _Drain(stream, runtime, executor, fetcher, progress, deadline)
    return _result_of(drain, drain.run)


def run_backfill(
    stream: StreamConfig,
    runtime: Runtime,
    executor: RunExecutor,
    keys: Collection[str],
    *,
    fetcher: Fetcher,
    progress: Progress,
) -> Ingested:
    """Run those backfill batches of `keys` that are not committed, in the order of their keys; plan nothing.

    Never raises a `KafkaAssetsError`: what was committed before it is part of the answer, which carries it.
    """
    drain = _Drain(stream, runtime, executor, fetcher, progress, None, kind="backfill", keys=frozenset(keys))
    return _result_of(drain, drain.run_planned)


def _result_of(drain: _Drain, work: Callable[[], None]) -> Ingested:
    started = time.monotonic()
    try:
        work()
    except KafkaAssetsError as error:
        drain.result.error = error
    finally:
        drain.close()
        drain.result.seconds = round(time.monotonic() - started, 3)
    return drain.result


class _Drain:
    def __init__(
        self,
        stream: StreamConfig,
        runtime: Runtime,
        executor: RunExecutor,
        fetcher: Fetcher,
        progress: Progress,
        deadline: float | None,
        *,
        kind: Kind = "live",
        keys: Collection[str] | None = None,
    ) -> None:
        self._stream = stream
        self._runtime = runtime
        self._executor = executor
        self._fetcher = fetcher
        self._progress = progress
        self._deadline = deadline
        self._kind = kind
        self._keys = keys
        self.result = Ingested()
        self._fetches_ahead = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"ahead-{stream.name}")
        self._ahead: deque[BatchRow] = deque()
        self._more = False
        self._failed: set[str] = set()
        self._stops: dict[str, KafkaAssetsError] = {}

    def run(self) -> None:
        seen = self._survey()
        ends = {partition: bounds.end for partition, bounds in seen.bounds.items()}
        self._begin(outstanding(seen))
        while True:
            self._check_deadline()
            planned = self._plan(ends)
            ours = self._take()
            if ours:
                self._execute(ours)
            elif planned is not None:
                self._wait(planned)
            elif not self._others(ends):
                break
            else:
                time.sleep(WAIT_SECONDS)
        self._raise_what_remains()

    def run_planned(self) -> None:
        """Run what is planned already, one batch an interval under a rate limit, and plan nothing."""
        self._begin(sum(planned.range.size for batch in self._open() for planned in batch.ranges))
        limited = bool(self._stream.rate_limits)
        began: float | None = None
        while self._open():
            left = 0.0 if began is None else began + self._stream.interval - time.monotonic()
            if limited and left > 0:
                self._wait(left)
            ours = self._take()
            if ours:
                began = time.monotonic()
                self._execute(ours)
            else:
                time.sleep(WAIT_SECONDS)
        self._raise_what_remains()

    def _begin(self, offsets: int) -> None:
        self._progress.total(offsets)
        self._fetches_ahead = self._fetcher.start_for(offsets)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._fetcher.cancel()
        self._pool.shutdown(wait=True)
        for batch in self._ahead:
            withdraw(self._stream.name, batch.batch, batch.generation)
            release(self._stream.name, batch.batch)

    def _survey(self) -> Survey:
        return survey(self._stream, self._runtime.warehouse, self._runtime.log(self._stream))

    def _plan(self, ends: Mapping[TopicPartition, int]) -> float | None:
        """Plan what may be planned now; return for how many seconds a rate limit asks to wait, if it does.

        Nothing is, as long as there are planned batches that nobody fetches yet.
        """
        if self._more:
            return None
        while True:
            seen = self._survey()
            now = utc_now()
            plan = propose(
                self._stream, seen, self._runtime.log(self._stream), now=now, drain=True, ends=ends
            )
            for stop in plan.stops:
                self._stops[f"{stop.topic}[{stop.partition}]"] = error_from_text(
                    f"{stop.code}: {stop.message}"
                )
            try:
                record(
                    self._stream,
                    self._runtime.warehouse,
                    seen,
                    plan,
                    now=now,
                    key_floor=self._executor.newest_key(self._stream) if plan.batches else None,
                )
            except PlanConflictError:
                continue
            self.result.lost += sum(loss.until_offset - loss.from_offset for loss in plan.losses)
            break
        return plan.wait

    def _take(self) -> BatchRow | None:
        """Return the next batch to run, with those after it being fetched meanwhile."""
        known = {batch.batch for batch in self._ahead}
        self._more = False
        for batch in self._open():
            if batch.batch in known:
                continue
            if len(self._ahead) > AHEAD:
                self._more = True
                break
            if hold(self._runtime.warehouse, self._stream.name, batch.batch):
                self._fetch_ahead(batch)
        return self._ahead.popleft() if self._ahead else None

    def _open(self) -> list[BatchRow]:
        return [
            batch
            for batch in batches.read_open(self._stream, self._runtime.warehouse)
            if self._ours(batch)
            and not batches.waits_for_a_person(self._stream, batch)
            and batch.batch not in self._failed
        ]

    def _ours(self, batch: BatchRow) -> bool:
        return batch.kind == self._kind and (self._keys is None or batch.batch in self._keys)

    def _fetch_ahead(self, batch: BatchRow) -> None:
        if self._fetches_ahead and self._may_fetch(batch):
            staged = self._pool.submit(self._fetcher.fetch, batch, name=f"ahead-{os.getpid()}")
            offer(self._stream.name, batch.batch, batch.generation, staged)
        self._ahead.append(batch)

    def _may_fetch(self, batch: BatchRow) -> bool:
        """Whether to fetch a batch ahead; its own run waits for room, or finds what was staged of it before."""
        warehouse, limit = self._runtime.warehouse, self._runtime.config.warehouse.max_staged_bytes
        if batches.staged_before(self._stream, warehouse, batch, batch.ranges) is not None:
            return False
        room = Room(warehouse, self._stream.name, batch.batch, limit=limit)
        return room.try_take(self._stream.max_bytes_per_batch)

    def _execute(self, batch: BatchRow) -> None:
        # Another process may have committed it since it was read here: then there is nothing to do, least of all to
        # replace its rows.
        run = self._executor.execute(self._stream, batch.batch, generation=batch.generation)
        now = batches.read_batch(self._stream, self._runtime.warehouse, batch.batch)
        if run.is_success:
            if now.run_id == run.run_id:
                self.result.add(now)
            else:
                self._let_go_ahead(batch)
            self._progress.advance(sum(planned.range.size for planned in batch.ranges))
            return
        self._failed.add(batch.batch)
        text = _failure(self._executor, run, now)
        error = error_from_text(f"{text}\n(batch {batch.batch}, Dagster run {run.run_id})")
        if error.exit_code != AttemptsExhaustedError.exit_code:
            raise error
        self._stops[batch.batch] = error

    def _let_go_ahead(self, batch: BatchRow) -> None:
        """Remove what was fetched ahead for a run that did not come to it."""
        with suppress(KafkaAssetsError):
            for one in adopt(self._stream.name, batch.batch, batch.generation) or ():
                discard(one)

    def _others(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Return whether another process still runs a batch that this call is to see committed."""
        return any(
            planned.range.from_offset < ends.get(planned.range.topic_partition, 0)
            for batch in self._open()
            for planned in batch.ranges
        )

    def _wait(self, seconds: float) -> None:
        self._progress.say(
            f"stream {self._stream.name}: waiting {seconds:.1f} s for the rate limit"
            f" ({' and '.join(self._stream.rate_limits)}: one batch each {self._stream.interval:g} s)"
        )
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check_deadline()
            time.sleep(min(left, WAIT_SECONDS))

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise FetchStalledError(
                f"ingest of stream {self._stream.name!r} was not done within its --timeout. What is committed stays"
                f" ({len(self.result.batches)} batches by this call); run it again to go on."
            )

    def _raise_what_remains(self) -> None:
        for batch in batches.read_open(self._stream, self._runtime.warehouse):
            if batch.blocked and self._ours(batch) and batch.batch not in self._stops:
                self._stops[batch.batch] = error_from_text(
                    f"{batch.last_error or 'ATTEMPTS_EXHAUSTED: no error was written down'}\n(batch"
                    f" {batch.batch} is blocked until `kafka-assets replay {self._stream.name} {batch.batch}` or a"
                    " click on it in Dagster)"
                )
        if self._stops:
            first, *more = self._stops.values()
            if more:
                first = type(first)(f"{first.message}\n(and {len(more)} more such stops)")
            raise first


def _failure(executor: RunExecutor, run: dg.DagsterRun, batch: BatchRow) -> str:
    """Return a run's error as `CODE: message`: in its own words where they have a code.

    The ledger may have that of an earlier run: a full disk, or a file held by others, keeps this one out of it.
    """
    told = executor.failure_of(run)
    return told if error_from_text(told).code != RunFailedError.code else batch.last_error or told


def replay(
    stream: StreamConfig, runtime: Runtime, executor: RunExecutor, key: str, scope: ReplayScope = WHOLE
) -> BatchRow:
    """Run one batch again: a committed one's rows are replaced, within a scope; a planned one is loaded, whole.

    Raises:
        KafkaAssetsError: As the run failed; the rows are as they were.
    """
    batches.read_batch(stream, runtime.warehouse, key)
    run = executor.execute(stream, key, scope.to_tags())
    batch = batches.read_batch(stream, runtime.warehouse, key)
    if not run.is_success:
        raise error_from_text(_failure(executor, run, batch))
    if batch.run_id != run.run_id:
        raise RunFailedError(
            f"batch {key} of stream {stream.name} was committed by run {batch.run_id} while run {run.run_id} fetched"
            " it; its rows are whole. Start the replay again if it is still wanted."
        )
    return batch
