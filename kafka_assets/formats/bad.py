"""Bad records: what becomes of one that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kafka_assets.formats import DECODING, Decoded
from kafka_assets.records import BAD_SCHEMA, RAW_SCHEMA, bad_record, place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka_assets.config.values import OnBadRecord
    from kafka_assets.formats import Format


def split(
    batch: pa.RecordBatch, errors: Mapping[int, str], stage: str = DECODING
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Part a batch of RAW_SCHEMA into the rest of it and its bad records, the order kept in both.

    Args:
        batch: The records.
        errors: Why a record is bad, by its row.
        stage: Where they failed.
    """
    is_bad = np.zeros(batch.num_rows, np.bool_)
    is_bad[list(errors)] = True
    bad = batch.filter(pa.array(is_bad))
    texts = [errors[row] for row in sorted(errors)]
    columns = [*bad.columns, pa.repeat(stage, len(texts)), pa.array(texts, pa.string())]
    return batch.filter(pa.array(~is_bad)), pa.RecordBatch.from_arrays(columns, schema=BAD_SCHEMA)


def decode(fmt: Format, fetched: pa.RecordBatch, on_bad_record: OnBadRecord) -> Decoded:
    """Decode a fetched batch, in which records may be bad before their values are looked at.

    Raises:
        BadRecordError: A record is bad and none is to be set aside; the message names the first.
    """
    decoded = fmt.decode(fetched) if fetched.schema.equals(RAW_SCHEMA) else _readable(fmt, fetched)
    if decoded.bad is not None and on_bad_record == "fail":
        first = decoded.bad.slice(0, 1).to_pylist()[0]
        raise bad_record(
            place(first["_kafka_topic"], first["_kafka_partition"], first["_kafka_offset"]), first["error"]
        )
    return decoded


def _readable(fmt: Format, fetched: pa.RecordBatch) -> Decoded:
    is_bad = pc.is_valid(fetched["error"])
    bad = [fetched.filter(is_bad)]
    decoded = fmt.decode(fetched.filter(pc.invert(is_bad)).select(RAW_SCHEMA.names))
    if decoded.bad is not None:
        bad.append(decoded.bad)
    (together,) = pa.Table.from_batches(bad).combine_chunks().to_batches()
    return Decoded(decoded.rows, together)
