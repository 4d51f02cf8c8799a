from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import Record, read_all, tombstone, wait_until, watermarks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

COMPACTED = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
LAST, ROLLS = 50, 3

RECORDS = [Record(b"v%d" % offset, b"same" if offset % 10 else b"k%d" % offset) for offset in range(LAST - 1)]
RECORDS.append(tombstone(b"k20"))
KEPT = [0, 10, 30, 40, 48, 49]


def compact(bootstrap: str, produce: Callable[..., object], topic: str, kept: Collection[int]) -> None:
    """Wait until compaction has left only these of the first offsets."""

    def thinned() -> bool:
        found = [one.offset() for one in read_all(bootstrap, topic)]
        if watermarks(bootstrap, topic)[0][1] < LAST + ROLLS:
            # The active segment is left alone: a record more begins another.
            produce(topic, [Record(b"roll", b"roll")], 0)
        return [offset for offset in found if offset < LAST] == list(kept)

    wait_until(thinned, "the log is compacted")


def test_compaction_between_plan_and_fetch_leaves_holes_that_are_accounted_for(
    story, topic, produce, bootstrap
):
    """Offsets that compaction took are undeliverable, in the midst of a range and at its end; no fetch waits."""
    name = topic(config=COMPACTED)
    produce(name, RECORDS, 0)
    story.setting(topics=[name], max_records_per_batch=25)
    assert [str(one.range) for batch in story.tick().batches for one in batch] == [
        f"{name}[0] [0, 25)",
        f"{name}[0] [25, 50)",
    ]
    compact(bootstrap, produce, name, KEPT)

    story.ingest()

    first = [row for row in story.rows() if row[2] < LAST]
    assert first == [(name, 0, offset, RECORDS[offset].value) for offset in KEPT]
    assert story.query(
        "SELECT from_offset, loaded, undeliverable FROM kafka_assets.offset_ranges ORDER BY ALL LIMIT 2"
    ) == [(0, 2, 23), (25, 4, 21)]
    story.proof()


def test_a_replay_that_compaction_has_thinned_is_refused_and_the_rows_are_kept(
    story, topic, produce, bootstrap
):
    """Tombstones are rows; what Kafka can no longer give back stays in the table, and the stream goes on."""
    name = topic(config=COMPACTED)
    places = produce(name, RECORDS, 0)
    rows = expected(name, places, [record.value for record in RECORDS])
    story.setting(topics=[name])
    (key,) = story.ingest().stream["batches"]
    assert story.rows() == rows
    assert rows[-1] == (name, 0, LAST - 1, None)
    compact(bootstrap, produce, name, KEPT)

    refused = story.command("replay", key)

    assert (refused.exit_code, refused.code) == (3, "RANGE_UNAVAILABLE")
    assert story.rows() == rows
    assert story.proof() == {(name, 0, 0): {"from": 0, "until": LAST, "loaded": LAST}}
    assert story.batches() == {"committed": 1}
    assert story.plan().stream["batch"] is not None
