"""`rename`: a stream's ledger, table and Dagster keys follow its new name in the streams file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import dagster as dg

from kafka_assets import ledger
from kafka_assets import ledger_sql as sql
from kafka_assets.attempts import is_alive
from kafka_assets.batch_lock import is_held
from kafka_assets.config import TableName, parse_table
from kafka_assets.errors import (
    ConfigInvalidError,
    RunFailedError,
    StreamUnknownError,
    TableTakenError,
    UsageInvalidError,
    WarehouseLockedError,
)
from kafka_assets.orchestration.metadata import batch_metadata
from kafka_assets.orchestration.naming import PARTITION_TAG, STREAM_TAG
from kafka_assets.orchestration.runs import runs_of
from kafka_assets.planner import utc_now
from kafka_assets.statements import changed, quote, quote_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from kafka_assets.config import StreamConfig
    from kafka_assets.orchestration.naming import Names
    from kafka_assets.orchestration.runtime import Runtime

_OPEN = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Renamed:
    """What a rename came to.

    Attributes:
        table_before: The stream's table.
        table: The same under the name it has now.
        batches: Number of batches whose keys followed.
    """

    table_before: TableName
    table: TableName
    batches: int


def rename(old: str, stream: StreamConfig, runtime: Runtime, instance: dg.DagsterInstance) -> Renamed:
    """Give a stream's ledger the name that the streams file has for it now.

    The ledger and the table change in one transaction. Before it the new partitions definition gets the keys,
    after it the old one loses them; cut short anywhere, the same rename does the rest.

    Args:
        old: The name that is no longer in the streams file.
        stream: The stream under its new name.
        runtime: Of the code location.
        instance: Where the keys are.

    Raises:
        UsageInvalidError: The old name is still in the file, or the new one has a ledger of its own.
        StreamUnknownError: Nothing was ever planned under the old name.
        ConfigInvalidError: The streams file names a table that is neither the stream's nor its new default.
        TableTakenError: There is a table of the new name.
        WarehouseLockedError: A run of the stream is alive.
    """
    if old in runtime.config.streams:
        raise UsageInvalidError(
            f"stream {old!r} is still in {runtime.config.path}, so it would go on under both names. Nothing was"
            f" changed. Rename it there to {stream.name!r} first."
        )
    warehouse = runtime.warehouse
    with warehouse.reading() as con:
        known = ledger.read_stream(con, old).table
        taken = ledger.read_stream(con, stream.name).table
        keys = _keys(con, old) if con and known else []
        if con and taken and not known:
            keys = _keys(con, stream.name)
    before = parse_table(known or taken or stream.name)
    names = runtime.names(replace(stream, name=old, table=before))
    if taken:
        left = [key for key in instance.get_dynamic_partitions(names.batches) if key in set(keys)]
        if known or not left:
            raise _refused(old, stream, known=known)
        _follow(instance, names, runtime.names(stream), left, runtime, stream)
        return Renamed(before, stream.table, len(left))
    if not known:
        raise StreamUnknownError(
            f"the ledger of {warehouse.path} has no stream {old!r}, so there is nothing to rename to"
            f" {stream.name!r}. Nothing was changed."
        )
    table = _table_of(stream, before)
    for who in _at_work(instance, names, runtime, stream, old):
        raise WarehouseLockedError(
            f"stream {old!r} is not renamed while {who} is at work on it. Nothing was changed. Wait for its end, or"
            " terminate it in Dagster; with the new streams file loaded no other one of the old name begins."
        )
    instance.add_dynamic_partitions(runtime.names(stream).batches, keys)
    with warehouse.writing() as con:
        _rename_in_ledger(con, old, stream.name, before, table)
    _follow(instance, names, runtime.names(replace(stream, table=table)), keys, runtime, stream)
    return Renamed(before, table, len(keys))


def _refused(old: str, stream: StreamConfig, *, known: str | None) -> UsageInvalidError:
    what = f"and so has {old!r}" if known else f"and {old!r} has none"
    return UsageInvalidError(
        f"stream {stream.name!r} has a ledger already, {what}: a ledger is one stream's. Nothing was changed."
        " Give the stream another name in the streams file, one that never had a ledger."
    )


def _keys(con: duckdb.DuckDBPyConnection, stream: str) -> list[str]:
    return [key for (key,) in con.execute(sql.ALL_KEYS, {"stream": stream}).fetchall()]


def _table_of(stream: StreamConfig, before: TableName) -> TableName:
    """Return the table's name from now on: the one it has where the streams file says so, else the new default."""
    default = TableName(None, stream.name)
    if stream.table.key == before.key:
        return before
    if stream.table.key != default.key or before.schema is not None:
        raise ConfigInvalidError(
            f"the rows are in table {before}, and the streams file names {stream.table} for {stream.name!r}. Nothing"
            f" was changed. Set `table: {before}` to keep the table as it is"
            + ("." if before.schema else f", or leave `table` out to have it renamed to {default}.")
        )
    return default


def _at_work(
    instance: dg.DagsterInstance, names: Names, runtime: Runtime, stream: StreamConfig, old: str
) -> Iterator[str]:
    """Name the processes and runs that are at work on any batch of the stream."""
    staging, now = runtime.warehouse.staging, utc_now()
    for directory in sorted((staging / old).glob("*/")):
        if is_held(staging, old, directory.name):
            yield f"a process that holds batch {directory.name}"
    for run in instance.get_runs(dg.RunsFilter(statuses=_OPEN)):
        batch = run.tags.get(PARTITION_TAG)
        ours = run.tags.get(STREAM_TAG) == old or names.asset_key in (run.asset_selection or ())
        if batch is None or not ours:
            continue
        found = runs_of(instance, names, batch, now=now).get(run.run_id)
        if found is not None and is_alive(found, now.timestamp(), stream.batch_timeout):
            yield f"Dagster run {run.run_id} of batch {batch}"


def _rename_in_ledger(
    con: duckdb.DuckDBPyConnection, old: str, new: str, before: TableName, table: TableName
) -> None:
    if table.key != before.key:
        there = con.execute(
            sql.TABLE_COLUMNS, {"schema": table.schema or "main", "name": table.name}
        ).fetchall()
        if there:
            raise TableTakenError(
                f"there is a table {table} already, so {before} cannot be renamed to it. Nothing was changed. Drop"
                f" or rename that one, or set `table: {before}` to keep the table as it is."
            )
    renamed = changed(
        con,
        sql.RENAME_STREAM,
        old=old,
        new=new,
        schema=table.schema or "main",
        name=table.name,
    )
    if renamed != 1:
        raise RunFailedError(f"the ledger has {renamed} streams {old!r} where one was; nothing was changed.")
    for one in sql.TABLES_BY_STREAM:
        changed(con, sql.RENAME_ROWS.format(table=one), old=old, new=new)
    if table.name != before.name:
        con.execute(f"ALTER TABLE {quote_table(before)} RENAME TO {quote(table.name)}").fetchall()


def _follow(
    instance: dg.DagsterInstance,
    before: Names,
    names: Names,
    keys: list[str],
    runtime: Runtime,
    stream: StreamConfig,
) -> None:
    """Have Dagster's keys, and what it knows as materialized, follow."""
    if before.batches != names.batches:
        instance.add_dynamic_partitions(names.batches, keys)
    # Under the asset's new key nothing is known yet; under the same one, all is.
    known = instance.get_materialized_partitions(names.asset_key)
    missing = [key for key in keys if key not in known]
    for start in range(0, len(missing), _AT_ONCE):
        with runtime.warehouse.reading() as con:
            found = ledger.read_batches(con, stream.name, missing[start : start + _AT_ONCE])
        for batch in found:
            if batch.state == "committed":
                metadata = batch_metadata(batch, stream.table, outcome=f"renamed from {before.stream}")
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(names.asset_key, partition=batch.batch, metadata=metadata)
                )
    if before.batches != names.batches:
        there = set(instance.get_dynamic_partitions(before.batches))
        for key in keys:
            if key in there:
                instance.delete_dynamic_partition(before.batches, key)
