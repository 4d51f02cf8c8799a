from __future__ import annotations

import random

from kafka_assets_tests.faults.story import expected
from kafka_assets_tests.support.kafka import Record

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def test_messages_of_ten_megabytes_arrive_whole(story, topic, produce):
    """Large messages come through among small ones, in batches that hold few of them."""
    name = topic(config={"max.message.bytes": "12000000"})
    noise = random.Random(1).randbytes(10_000_000)  # noqa: S311  (bytes that do not compress, not a secret)
    payloads = [b"small", noise, b"small", noise[::-1], noise[1:] + b"!", b"small"]
    places = produce(name, payloads, 0, {"message.max.bytes": 12_000_000})
    story.setting(topics=[name], max_bytes_per_batch="16 MiB")

    story.ingest()

    assert story.rows() == expected(name, places, payloads)
    story.proof()


def test_every_compression_codec_is_read(story, topic, produce):
    """Batches of all codecs in one log give the same bytes, tombstones and empty values told apart."""
    name = topic()
    rows = []
    for number, codec in enumerate(CODECS):
        records = [Record(b"%d" % number * 500, b"key%d" % index) for index in range(20)]
        records += [Record(None, b"gone"), Record(b"", b"empty"), Record(b"no key")]
        places = produce(name, records, 0, {"compression.type": codec, "linger.ms": 50})
        rows += expected(name, places, [record.value for record in records])
    story.setting(topics=[name], max_records_per_batch=60)

    story.ingest()

    assert story.rows() == rows
    assert story.query(
        "SELECT DISTINCT _kafka_key IS NULL, _kafka_value FROM orders WHERE octet_length(_kafka_value) < 9 ORDER BY ALL"
    ) == [
        (False, b""),
        (True, b"no key"),
    ]
    story.proof()
