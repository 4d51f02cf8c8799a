"""The order-free digest of rows that the ledger keeps of each range.

DuckDB's `hash` costs a fiftieth of a microsecond for a small row, a cryptographic digest fifty times that,
but its values may change between DuckDB versions: a digest is stored with the name of the function that made
it, and only digests of one function are compared.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka_assets.offsets import OffsetRange

DIGEST_FUNCTION = f"duckdb.hash/{duckdb.__version__}"

_BY_PARTITION = "SELECT _kafka_partition, {digest}, count(*) FROM rows_of_batch GROUP BY ALL"
_BY_RANGE = """
SELECT place, {digest}, count(*)
FROM rows_of_batch JOIN ranges USING (_kafka_topic, _kafka_partition)
WHERE _kafka_offset >= from_offset AND _kafka_offset < until_offset
GROUP BY place
"""

BAD_COLUMNS = ("_kafka_value",)
"""What the digest of a bad record holds in the place of a format's own columns."""


def digest_expression(columns: Sequence[str]) -> str:
    """Return the SQL aggregate (HUGEINT) over offset, key and a format's own columns of a set of rows."""
    hashed = ", ".join(
        '"' + name.replace('"', '""') + '"' for name in ("_kafka_offset", "_kafka_key", *columns)
    )
    return f"sum(hash({hashed}))::HUGEINT"


@cache
def _standing_connection(_pid: int) -> duckdb.DuckDBPyConnection:
    """Return this process's connection for digests: opening one costs as much as staging 20,000 records."""
    # One thread: the batches are small, and other threads fetch.
    return duckdb.connect(":memory:", config={"threads": 1})


class RangeDigests:
    """Adds up the digests of ranges over batches of their rows.

    Args:
        ranges: The ranges, which the rows all lie in.
        columns: The format's own columns.
    """

    def __init__(self, ranges: Sequence[OffsetRange], columns: Sequence[str]) -> None:
        self._connection = _standing_connection(os.getpid()).cursor()
        self._connection.register(
            "ranges",
            pa.table(
                {
                    "place": pa.array(range(len(ranges)), pa.int32()),
                    "_kafka_topic": pa.array([one.topic for one in ranges], pa.string()),
                    "_kafka_partition": pa.array([one.partition for one in ranges], pa.int32()),
                    "from_offset": pa.array([one.from_offset for one in ranges], pa.int64()),
                    "until_offset": pa.array([one.until_offset for one in ranges], pa.int64()),
                }
            ),
        )
        self._columns = columns
        # One range of each partition of one topic, as most are: a third cheaper than to look up each row's range.
        by_partition = {one.partition: place for place, one in enumerate(ranges)}
        alone = len(by_partition) == len(ranges) and len({one.topic for one in ranges}) == 1
        self._query = _BY_PARTITION if alone else _BY_RANGE
        self._places = by_partition if alone else {place: place for place in range(len(ranges))}
        self.totals = [0] * len(ranges)
        """The digest of each range so far, its bad records included, in the order given; 0 without any."""
        self.bad = [0] * len(ranges)
        """The number of bad records of each range so far."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch that has the `_kafka_` columns and the format's."""
        for place, digest, _ in self._summed(batch, self._columns):
            self.totals[place] += digest

    def add_bad(self, batch: pa.RecordBatch) -> None:
        """Add the bad records of a batch, as Kafka has them."""
        for place, digest, count in self._summed(batch, BAD_COLUMNS):
            self.totals[place] += digest
            self.bad[place] += count

    def _summed(self, batch: pa.RecordBatch, columns: Sequence[str]) -> list[tuple[int, int, int]]:
        self._connection.register("rows_of_batch", pa.Table.from_batches([batch]))
        found = self._connection.execute(self._query.format(digest=digest_expression(columns))).fetchall()
        self._connection.unregister("rows_of_batch")
        return [(self._places[place], digest, count) for place, digest, count in found]

    def close(self) -> None:
        """Let go of the memory."""
        self._connection.close()
