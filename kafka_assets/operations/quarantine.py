"""`quarantine`: the bad records of a stream, and their decoding again in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kafka_assets import ledger_sql as sql
from kafka_assets.commits import load_quarantined
from kafka_assets.config.values import TableName
from kafka_assets.errors import BadRecordError
from kafka_assets.formats import DECODING, get_format
from kafka_assets.ledger import check_table, count_quarantined, ensure_schema, has_ledger
from kafka_assets.planner import utc_now
from kafka_assets.records import RAW_SCHEMA, place
from kafka_assets.statements import changed, registered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import duckdb

    from kafka_assets.config import StreamConfig
    from kafka_assets.formats import Format
    from kafka_assets.warehouse import Warehouse

_STILL = "_kafka_assets_still_bad"
_TOLD = {
    "topic": "_kafka_topic",
    "partition": "_kafka_partition",
    "offset": "_kafka_offset",
    "timestamp": "_kafka_timestamp",
    "batch": "_kafka_batch",
    "ingested_at": "_ingested_at",
    "stage": "stage",
    "error": "error",
    "size": "octet_length(_kafka_value)",
}
_CONTENTS = {
    "timestamp_type": "_kafka_timestamp_type",
    "key": "_kafka_key",
    "headers": "_kafka_headers",
    "value": "_kafka_value",
}


@dataclass(frozen=True, slots=True)
class Retried:
    """What decoding again came to.

    Attributes:
        loaded: Records that are rows now.
        removed: Records that decode and that `expire` takes away.
        quarantined: Records that stay.
        error: Says that some stay, and why the first of them; None where none does.
    """

    loaded: int = 0
    removed: int = 0
    quarantined: int = 0
    error: BadRecordError | None = None


def listed(
    con: duckdb.DuckDBPyConnection | None, stream: str, *, contents: bool = False, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return the bad records of a stream by topic, partition and offset; `contents` with what is in them."""
    if con is None or not has_ledger(con):
        return []
    told = {**_TOLD, **(_CONTENTS if contents else {})}
    statement = sql.QUARANTINED.format(columns=", ".join(told.values()), asked="true")
    rows = con.execute(statement, {"stream": stream, "limit": limit}).fetchall()
    return [dict(zip(told, row, strict=True)) for row in rows]


def retry(stream: StreamConfig, warehouse: Warehouse) -> Retried:
    """Decode the bad records of a stream again, as its format reads them now, in one transaction.

    Those that decode become rows of the batch they were fetched by, at their own offset; the others stay, with what
    is wrong with them now. One that could not be fetched whole stays as it is: a replay may fetch it.

    Raises:
        WarehouseInvalidError: The table does not have the columns of the format.
        KafkaAssetsError: Nothing was changed.
    """
    with warehouse.reading() as con:
        if not count_quarantined(con, stream.name):
            return Retried()
    with warehouse.writing() as con:
        return _Retry(con, stream, get_format(stream.format), utc_now()).all()


@dataclass(frozen=True, slots=True)
class _Retry:
    con: duckdb.DuckDBPyConnection
    stream: StreamConfig
    fmt: Format
    now: datetime

    @property
    def _named(self) -> Mapping[str, str]:
        return {"stream": self.stream.name}

    def all(self) -> Retried:
        ensure_schema(self.con)
        ((_, schema, name, _),) = self.con.execute(sql.READ_STREAM, self._named).fetchall()
        table = TableName(schema=schema, name=name)
        check_table(self.con, table, self.fmt.columns)
        loaded = removed = 0
        # A batch at a time: as much of it as was in memory when it was fetched.
        for (key,) in self.con.execute(sql.QUARANTINED_BATCHES, self._named).fetchall():
            good, bad = self._decoded(key)
            if good.num_rows:
                rows = load_quarantined(
                    self.con,
                    self.stream.name,
                    key,
                    good,
                    table=table,
                    columns=self.fmt.columns,
                    now=self.now,
                )
                loaded += rows
                removed += good.num_rows - rows
            if bad:
                with registered(self.con, _STILL, pa.Table.from_batches(bad)):
                    changed(self.con, sql.RENEW_ERRORS.format(rows=_STILL), batch=key, **self._named)
        left = count_quarantined(self.con, self.stream.name)
        return Retried(loaded, removed, left, self._error(left) if left else None)

    def _decoded(self, key: str) -> tuple[pa.Table, Sequence[pa.RecordBatch]]:
        """Return the rows and the bad records that those of a batch are now."""
        asked = "_kafka_batch = $batch AND stage = $stage"
        statement = sql.QUARANTINED.format(columns=", ".join(RAW_SCHEMA.names), asked=asked)
        named = {**self._named, "batch": key, "stage": DECODING, "limit": None}
        records: pa.Table = self.con.sql(statement, params=named).to_arrow_table()
        # One piece even of nothing, for its schema.
        pieces = records.cast(RAW_SCHEMA).to_batches() or [pa.RecordBatch.from_pylist([], schema=RAW_SCHEMA)]
        decoded = [self.fmt.decode(piece) for piece in pieces]
        rows = pa.Table.from_batches([one.rows for one in decoded])
        return rows, [one.bad for one in decoded if one.bad is not None]

    def _error(self, left: int) -> BadRecordError:
        first = listed(self.con, self.stream.name, limit=1)[0]
        where = place(first["topic"], first["partition"], first["offset"])
        return BadRecordError(
            f"{left} records of stream {self.stream.name} stay in quarantine, the first {where}: {first['error']}."
            " What decodes now is loaded. Change the stream's `format:` to what they are, or have them produced again"
            " as they should be; they stay where they are and count as quarantined."
        )
