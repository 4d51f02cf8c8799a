"""A stream as an asset: each run is `plan -> fetch -> commit` of the batch that its partition key names."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from kafka_assets import batches, ledger, notes
from kafka_assets.errors import KafkaAssetsError, WarehouseLockedError
from kafka_assets.formats import get_format
from kafka_assets.offsets import PlannedRange
from kafka_assets.orchestration.failures import reported
from kafka_assets.orchestration.liveness import finish, hold, host_tag, release
from kafka_assets.orchestration.metadata import asset_metadata, batch_metadata
from kafka_assets.orchestration.naming import GENERATION_TAG, RUN_KEY_TAG, STREAM_TAG, Names, generation_tag
from kafka_assets.orchestration.prefetch import adopt
from kafka_assets.planner import rate_now
from kafka_assets.room import Room, headroom_of
from kafka_assets.scope import ReplayScope
from kafka_assets.staged import StagedSlice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka_assets.config import StreamConfig
    from kafka_assets.ledger import BatchRow
    from kafka_assets.orchestration.runtime import Runtime

MEMORY_BYTES = 64 * 1024**2
"""What a run keeps in memory between its fetch and its commit; more goes through files."""

IO_MANAGER = "kafka_assets_io"
"""The ops' small dicts go through a file-system IO manager of their own: the code location's default one may
be made for tables."""

RANGES_TOLD = 50

_FILES = dg.FilesystemIOManager().get_resource_definition()
# One object for all streams: Dagster wants the definitions of a resource's name to be identical.


def batches_def_of(names: Names) -> dg.DynamicPartitionsDefinition:
    return dg.DynamicPartitionsDefinition(name=names.batches)


def topic_assets(names: Names) -> list[dg.AssetSpec]:
    return [
        dg.AssetSpec(key, kinds={"kafka"}, group_name="kafka", description=f"Kafka topic `{key.path[-1]}`.")
        for key in names.topics
    ]


def build_asset(stream: "StreamConfig", runtime: "Runtime") -> dg.AssetsDefinition:
    """Return the asset of a stream: its table, partitioned by batch."""
    with warnings.catch_warnings():
        # Dagster's note that an asset may not always have resources of its own; the version is held for that.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _build_asset(stream, runtime)


def _build_asset(stream: "StreamConfig", runtime: "Runtime") -> dg.AssetsDefinition:
    names = runtime.names(stream)
    steps = _Steps(stream, runtime)
    topics = {f"topic_{index}": key for index, key in enumerate(names.topics)}

    plan = dg.op(
        name=names.op("plan"),
        description="Reads the batch's offset ranges from the ledger and cuts them into a slice for each fetch step.",
        ins={name: dg.In(dg.Nothing) for name in topics},
        out=dg.DynamicOut(dict, io_manager_key=IO_MANAGER),
    )(steps.plan)
    fetch = dg.op(
        name=names.op("fetch"),
        description="Fetches exactly the ranges of a slice, into memory or a staged file.",
        out=dg.Out(dict, io_manager_key=IO_MANAGER),
    )(steps.fetch)
    commit = dg.op(
        name=names.op("commit"),
        description="Writes rows, outcomes and the batch's state in one transaction.",
        ins={"fetched": dg.In(list)},
        out=dg.Out(dg.Nothing),
    )(steps.commit)

    @dg.graph_asset(
        key=names.asset_key,
        ins={name: dg.AssetIn(key=key, dagster_type=dg.Nothing) for name, key in topics.items()},
        description=_description(stream),
        partitions_def=batches_def_of(names),
        metadata=asset_metadata(stream, runtime.config.warehouse.uri),
        tags={STREAM_TAG: stream.name},
        kinds={"kafka", "duckdb"},
        group_name="kafka",
        resource_defs={IO_MANAGER: _FILES},
        code_version=get_format(stream.format).fingerprint,
    )
    def asset(**topics: Any) -> Any:  # noqa: ANN401  graph composition has no types of its own
        return commit(plan(**topics).map(fetch).collect())

    return asset


def _description(stream: "StreamConfig") -> str:
    return (
        f"Stream `{stream.name}`: Kafka records in table `{stream.table}`, each exactly once. A partition is"
        " a batch: exact offset ranges planned by the sensor. Materializing one again replaces its rows."
    )


@dataclass(frozen=True, slots=True)
class _Steps:
    stream: "StreamConfig"
    runtime: "Runtime"

    def plan(self, context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput[dict[str, Any]]]:
        key = context.partition_key
        with self._at_work_on(key, context):
            batch = self._planned_meanwhile(context) or self._planned(context)
        slices = batches.slices_of(batch, self.runtime.fetch_groups)
        for index, ranges in enumerate(slices or ((),)):
            yield dg.DynamicOutput(
                {
                    "batch": key,
                    "generation": batch.generation,
                    "group": index,
                    "started": time.time(),
                    "ranges": [planned.to_row() for planned in ranges],
                },
                mapping_key=str(index),
            )

    def _planned(self, context: dg.OpExecutionContext) -> batches.KnownBatch:
        """Read from the ledger which generation of the batch this run moves on from, and what it fetches."""
        stream, warehouse, key = self.stream, self.runtime.warehouse, context.partition_key
        batch = batches.read_batch(stream, warehouse, key)
        self._take(key, context)
        generation = _generation_to_replace(context, batch)
        if batch.blocked:
            with warehouse.writing() as connection:
                ledger.clear_block(connection, stream.name, key)
        # One that was planned when this run began is loaded, by whomever.
        stands = generation == batch.generation
        wanted = batches.ranges_to_fetch(stream, warehouse, batch, _scope(context)) if stands else ()
        if 0 < len(wanted) < len(batch.ranges):
            context.log.info(f"replacing only {', '.join(str(one.range) for one in wanted)}")
        context.log.info(_told(batch.ranges))
        return batches.KnownBatch(stream.name, key, generation, wanted)

    def _planned_meanwhile(self, context: dg.OpExecutionContext) -> batches.KnownBatch | None:
        """Return the same of a batch whose ranges the sensor noted, if the warehouse is locked; else None.

        The sensor requests runs of open batches alone. The commit compares with the ledger.
        """
        stream, warehouse, key = self.stream, self.runtime.warehouse, context.partition_key
        if RUN_KEY_TAG not in context.run.tags or context.run.parent_run_id is not None:
            return None
        ranges = notes.noted_plan(warehouse.staging, stream.name, key)
        if ranges is None:
            return None
        try:
            with warehouse.reading(min(batches.PATIENCE_SECONDS, warehouse.lock_timeout)):
                return None
        except WarehouseLockedError as locked:
            context.log.info(f"{locked.message} Fetching meanwhile what the sensor noted of its plan.")
        self._take(key, context)
        _note_generation(context, context.run_id, 0)
        context.log.info(_told(ranges))
        return batches.KnownBatch(stream.name, key, 0, ranges)

    def fetch(self, context: dg.OpExecutionContext, group: dict[str, Any]) -> dict[str, Any]:
        stream, warehouse, key = self.stream, self.runtime.warehouse, group["batch"]
        ranges = tuple(PlannedRange.from_row(row) for row in group["ranges"])
        if not ranges:
            return {**group, "staged": []}
        with self._at_work_on(key, context):
            self._take(key, context)
            batch = batches.KnownBatch(stream.name, key, group["generation"], ranges)
            verb, staged = "fetched", adopt(stream.name, key, batch.generation)
            if staged is None:
                verb, staged = "found staged", batches.staged_before(stream, warehouse, batch, ranges)
            if staged is None:
                room = self._room_for(batch, context)
                one = batches.stage_slice(
                    stream,
                    warehouse,
                    batch,
                    ranges,
                    name=f"{context.run_id[:8]}-{group['group']}-{context.retry_number}",
                    memory_bytes=MEMORY_BYTES if _in_one_process(context) else 0,
                )
                room.settle(one.size_bytes)
                staged = [one]
                verb = "fetched"
        context.log.info(
            f"{verb} {sum(one.rows for one in staged)} records, {sum(one.size_bytes for one in staged)} bytes"
        )
        return {**group, "ranges": [], "staged": [one.to_dict() for one in staged]}

    def commit(
        self, context: dg.OpExecutionContext, fetched: list[dict[str, Any]]
    ) -> dg.MaterializeResult[None]:
        stream, warehouse, key = self.stream, self.runtime.warehouse, context.partition_key
        with self._at_work_on(key, context):
            self._take(key, context)
            batch = batches.KnownBatch(stream.name, key, fetched[0]["generation"])
            staged = [StagedSlice.from_dict(one) for group in fetched for one in group["staged"]]
            done = batches.commit(
                stream,
                warehouse,
                batch,
                staged,
                run_id=context.run_id,
                scope=_scope(context),
                say=context.log.info,
            )
            finish(stream.name, key)
        context.log.info(
            f"{done.outcome}: {done.batch.rows} rows of batch {key} in table {stream.table},"
            f" {len(done.batch.ranges)} offset ranges in the ledger"
        )
        seconds = time.time() - min(group["started"] for group in fetched)
        return dg.MaterializeResult(
            metadata=batch_metadata(
                done.batch,
                stream.table,
                outcome=done.outcome,
                seconds=seconds,
                rate=rate_now(stream, warehouse),
            )
        )

    def _room_for(self, batch: batches.KnownBatch, context: dg.OpExecutionContext) -> Room:
        """Wait for room in the staging area."""
        stream, config = self.stream, self.runtime.config.warehouse
        ranges = [planned.range for planned in batch.ranges]

        def headroom() -> float:
            with suppress(KafkaAssetsError):
                bounds = self.runtime.log(stream).bounds([one.topic_partition for one in ranges])
                return headroom_of(ranges, bounds)
            return 1.0

        room = Room(self.runtime.warehouse, batch.stream, batch.batch, limit=config.max_staged_bytes)
        room.take(stream.max_bytes_per_batch, headroom=headroom, say=context.log.info)
        return room

    def _take(self, key: str, context: dg.OpExecutionContext) -> None:
        """Hold the batch's lock and, where a free lock means a dead run, tag the run with its host."""
        if not (hold(self.runtime.warehouse, self.stream.name, key) and _in_one_process(context)):
            return
        run, tag = context.instance.get_run_by_id(context.run_id), host_tag(context.run_id)
        if run is not None and not tag.items() <= run.tags.items():
            context.instance.add_run_tags(context.run_id, tag)

    @contextmanager
    def _at_work_on(self, key: str, context: dg.OpExecutionContext) -> Iterator[None]:
        """Report errors, and keep the batch's lock only for a step that is to come in this process.

        The process may be one that goes on to other things, as Celery's workers do.
        """
        keep = _in_one_process(context)
        try:
            with reported(context, self.runtime.warehouse, self.stream.name, key):
                yield
        except dg.RetryRequested:
            raise
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                release(self.stream.name, key)


def _generation_to_replace(context: dg.OpExecutionContext, batch: "BatchRow") -> int:
    """Return the batch's generation that this run is to move on from: 0 loads it, a higher one replaces it.

    Which of the two is fixed by the first run of a chain of retries, and kept on it as a tag: a run that
    began before another committed its batch has nothing left to do, and neither has a retry of it, however
    late.
    """
    root = _first_of_retries(context)
    run_id = root.dagster_run.run_id
    known, _, owner = root.dagster_run.tags.get(GENERATION_TAG, "").partition("/")
    if owner == run_id:
        return batch.generation if int(known) else 0
    generation = batch.generation
    if batch.committed_at is not None and root.create_timestamp < batch.committed_at:
        generation = 0
    _note_generation(context, run_id, generation)
    return generation


def _note_generation(context: dg.OpExecutionContext, run_id: str, generation: int) -> None:
    context.instance.add_run_tags(run_id, generation_tag(run_id, generation))


def _told(ranges: "Sequence[PlannedRange]") -> str:
    # One message: each is a row in Dagster's event log, and a batch may have thousands of ranges.
    named = "\n".join(str(planned.range) for planned in ranges[:RANGES_TOLD])
    more = len(ranges) - RANGES_TOLD
    size = sum(planned.range.size for planned in ranges)
    return f"{size} offsets are planned:\n{named}" + (f"\nand {more} more ranges" if more > 0 else "")


def _scope(context: dg.OpExecutionContext) -> ReplayScope:
    return ReplayScope.from_tags(context.run.tags)


def _in_one_process(context: dg.OpExecutionContext) -> bool:
    """Return whether all steps run here, so that a free lock means a dead run.

    Between two steps that are processes of their own nobody holds the lock: such a run is judged by its
    silence.
    """
    return context.job_def.executor_def.name == dg.in_process_executor.name


def _first_of_retries(context: dg.OpExecutionContext) -> dg.RunRecord:
    """Follow a run's parents as long as they failed: to execute again what had succeeded is a new wish."""
    record = context.instance.get_run_record_by_id(context.run_id)
    while record is not None and (parent_id := record.dagster_run.parent_run_id):
        parent = context.instance.get_run_record_by_id(parent_id)
        if parent is None or parent.dagster_run.is_success:
            break
        record = parent
    if record is None:
        raise dg.DagsterInvariantViolationError(f"run {context.run_id} is not in the instance's storage")
    return record
