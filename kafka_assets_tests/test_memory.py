"""Records of 10 MB, the largest there are in practice: what a fetch takes in memory, and what the warehouse stands."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kafka_assets import coverage
from kafka_assets.config.properties import KafkaProperties
from kafka_assets.config.values import FormatConfig, StreamConfig, Topics
from kafka_assets.fetch import RangeReader
from kafka_assets.formats import get_format
from kafka_assets.offsets import OffsetRange, PlannedRange
from kafka_assets.operations.expire import expire
from kafka_assets.staging import stage
from kafka_assets.warehouse import Warehouse
from kafka_assets_tests.warehouse_support import (
    RAW,
    STREAM,
    TABLE,
    commit,
    plan_of,
    record,
    staged_of,
    warehouse_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from kafka_assets_tests.conftest import TopicFactory
    from kafka_assets_tests.support import kafka as support

    Produce = Callable[..., list[support.Place]]

MB = 1_000_000
COUNT = 40


def _peak() -> int:
    """The most memory this program has had so far, in bytes: VmHWM, which begins anew with each program."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no VmHWM")


def _fetch(bootstrap: str, ranges: list[PlannedRange], folder: Path, pipe: Connection) -> None:
    before = _peak()
    reader = RangeReader({"bootstrap.servers": bootstrap}, ranges, stall_timeout=60)
    staged = stage(reader, get_format(FormatConfig("raw", {})), folder, "0-a")
    pipe.send((staged.rows, staged.size_bytes, _peak() - before))


def test_large_records_are_never_all_in_memory(
    bootstrap: str, topic: TopicFactory, produce: Produce, tmp_path: Path
) -> None:
    """A batch of 10 MB records that is much larger than it was planned to be goes through less memory than it has."""
    name = topic(partitions=2, config={"max.message.bytes": str(11 * MB)})
    value = os.urandom(10 * MB)
    config = {"message.max.bytes": 11 * MB, "queue.buffering.max.kbytes": 300_000}
    for partition in range(2):
        produce(name, [value] * (COUNT // 2), partition, config)
    ranges = [PlannedRange(OffsetRange(name, partition, 0, COUNT // 2)) for partition in range(2)]
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fetch, args=(bootstrap, ranges, tmp_path, there))
    process.start()
    there.close()
    rows, size, peak = here.recv()
    process.join(60)
    assert rows == COUNT
    assert size > COUNT * 10 * MB
    assert peak < size


def test_a_batch_of_large_records_can_be_committed_and_read(tmp_path: Path) -> None:
    """DuckDB holds 2,048 rows at once: within its limit of memory, those of a batch of 256 MiB have a place."""
    warehouse = warehouse_at(tmp_path)
    part = [PlannedRange(OffsetRange("orders", 0, 0, 25), 0, "id-0", 3)]
    (key,) = record(warehouse, plan_of({}, part), version=0)
    commit(warehouse, key, [staged_of(part, value=lambda _: os.urandom(10 * MB))])
    with warehouse.reading() as connection:
        assert coverage.verify(connection, STREAM, RAW).ok


def _limited(folder: Path) -> Warehouse:
    return Warehouse(folder / "w.duckdb", lock_timeout=20, staging=folder / "w.staging", memory_limit="100MB")


def _commit_small_ones(folder: Path, key: str, part: list[PlannedRange]) -> None:
    commit(_limited(folder), key, [staged_of(part)])


def test_small_records_follow_large_ones(tmp_path: Path) -> None:
    """A process that has only small records to add stands the large ones before them."""
    warehouse = _limited(tmp_path)
    parts = [
        [PlannedRange(OffsetRange("orders", 0, low, low + 40), 0, "id-0", 3)] for low in range(0, 240, 40)
    ]
    *large, small = record(warehouse, plan_of({}, *parts), version=0)
    for key, part in zip(large, parts, strict=False):
        commit(warehouse, key, [staged_of(part, value=lambda _: os.urandom(MB))])
    process = multiprocessing.get_context("spawn").Process(
        target=_commit_small_ones, args=(tmp_path, small, parts[-1])
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    with warehouse.reading() as connection:
        assert coverage.verify(connection, STREAM, RAW).ok


def test_a_table_of_large_records_grows_beyond_the_limit(tmp_path: Path) -> None:
    """Its last 2,048 rows pass DuckDB's limit: batches are added, replaced, proven and expired all the same."""
    warehouse = _limited(tmp_path)
    each, number = 40, 5
    parts = [
        [PlannedRange(OffsetRange("orders", 0, low, low + each), 0, "id-0", 3)]
        for low in range(0, each * number, each)
    ]
    keys = record(warehouse, plan_of({}, *parts), version=0)
    for key, part in zip(keys, parts, strict=True):
        commit(warehouse, key, [staged_of(part, value=lambda _: os.urandom(MB))])
    commit(warehouse, keys[0], [staged_of(parts[0], value=lambda _: os.urandom(MB))], generation=1)
    with warehouse.reading() as connection:
        assert coverage.verify(connection, STREAM, RAW).ok
    stream = StreamConfig(name=STREAM, selection=Topics(("orders",)), table=TABLE, kafka=KafkaProperties({}))
    (gone,) = expire(stream, warehouse, f"_kafka_offset >= {each * 4}", apply=True)
    assert gone.rows == each
    with warehouse.reading() as connection:
        assert coverage.verify(connection, STREAM, RAW).ok
