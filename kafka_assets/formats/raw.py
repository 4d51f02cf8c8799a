"""The raw format: values stay the bytes they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets.formats import Column, Decoded

if TYPE_CHECKING:
    import pyarrow as pa


class RawFormat:
    """`_kafka_value BLOB`; NULL for a tombstone."""

    columns = (Column("_kafka_value", "BLOB"),)
    fingerprint = "raw/1"

    def decode(self, batch: pa.RecordBatch) -> Decoded:
        """Return the batch as it is."""
        return Decoded(batch)
